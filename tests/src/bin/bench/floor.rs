//! Measures Redis alone: `redis-benchmark` calls the same script, for users that it chooses at
//! random.

use std::time::Duration;

use twofactor_tests::process::run as run_program;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::tools;

use crate::Figures;

/// Number of users to choose from: so many that few are chosen twice, and get another outcome the
/// second time.
pub(crate) const USERS: usize = 400_000;
/// Number of calls of a run. Together they take a part of a time step.
const CALLS: usize = 20_000;

/// Calls a script for users of [`Realm::prepare`](crate::realm::Realm::prepare). For two more
/// users, it must have the outcome `outcome` before and after.
pub(crate) async fn run(
    redis: &RedisServer,
    arguments: &[String],
    outcome: &str,
    connections: usize,
) -> Figures {
    assert_eq!(answer(redis, arguments, USERS).await, outcome);
    let figures = benchmark(redis, arguments, connections);
    assert_eq!(answer(redis, arguments, USERS + 1).await, outcome);
    figures
}

fn benchmark(redis: &RedisServer, arguments: &[String], connections: usize) -> Figures {
    let (port, connections) = (redis.port().to_string(), connections.to_string());
    let (calls, users) = (CALLS.to_string(), USERS.to_string());
    let mut words = vec!["-h", "127.0.0.1", "-p", &port, "-c", &connections, "-n", &calls];
    words.extend(["-r", &users, "--csv", "EVALSHA"]);
    words.extend(arguments.iter().map(String::as_str));
    let table = run_program(tools::find("redis-benchmark"), &words);
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms",…
    // The test's name is the whole command, commas included, so the figures are counted from the
    // end.
    let line = table.lines().last().expect("a line of figures");
    let numbers: Vec<f64> = line
        .rsplit("\",\"")
        .take(7)
        .map(|cell| cell.trim_matches('"').parse().expect("a figure"))
        .collect();
    let [_max, p99, _p95, p50, _min, _average, per_second] = numbers[..] else {
        panic!("unknown figures: {line}")
    };
    let latency = |millis: f64| Duration::from_secs_f64(millis / 1000.0);
    Figures { count: CALLS, per_second, median: latency(p50), p99: latency(p99) }
}

/// The word that the script answers for one user.
async fn answer(redis: &RedisServer, arguments: &[String], user: usize) -> String {
    let mut command = redis::cmd("EVALSHA");
    for argument in arguments {
        command.arg(argument.replace("__rand_int__", &format!("{user:012}")));
    }
    let parts: Vec<redis::Value> =
        command.query_async(&mut redis.connect().await).await.expect("the script's answer");
    redis::from_redis_value(parts.into_iter().next().unwrap_or(redis::Value::Nil)).expect("a word")
}

/// The time that Redis has spent in scripts so far, by its own count.
pub(crate) async fn script_time(redis: &RedisServer) -> Duration {
    let statistics: String = redis.ask(&["INFO", "commandstats"]).await;
    let line = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:"));
    let micros = line.and_then(|line| {
        line.split(',').find_map(|figure| figure.strip_prefix("usec=")?.parse().ok())
    });
    Duration::from_micros(micros.unwrap_or_default())
}
