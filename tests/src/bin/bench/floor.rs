//! Measures Redis alone: `redis-benchmark` calls the same script with the same arguments.

use std::time::Duration;

use twofactor_tests::process::run as run_program;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::tools;

use crate::Figures;

/// Duration of a run, far shorter than a time step.
const ATTEMPTS: usize = 3;

/// Makes about as many calls as fit into `duration`, each of which must have the outcome `outcome`.
/// Repeats them if a time step ended in between.
pub(crate) async fn run(
    redis: &RedisServer,
    arguments: impl Fn() -> Vec<String>,
    outcome: &str,
    connections: usize,
    duration: Duration,
) -> Figures {
    for _ in 0..ATTEMPTS {
        let arguments = arguments();
        // Each measured call must be the decision that the sidecar gets, from the first to the
        // last.
        if answer(redis, &arguments).await != outcome {
            continue;
        }
        let trial = benchmark(redis, &arguments, connections, 20_000);
        let calls = trial.per_second * duration.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number of calls"
        )]
        let figures = benchmark(redis, &arguments, connections, calls as usize);
        if answer(redis, &arguments).await == outcome {
            return figures;
        }
    }
    panic!("the script does not answer {outcome}");
}

/// The word that the script answers.
async fn answer(redis: &RedisServer, arguments: &[String]) -> String {
    let mut command = redis::cmd("EVALSHA");
    command.arg(arguments);
    let parts: Vec<redis::Value> =
        command.query_async(&mut redis.connect().await).await.expect("the script's answer");
    redis::from_redis_value(parts.into_iter().next().unwrap_or(redis::Value::Nil)).expect("a word")
}

fn benchmark(
    redis: &RedisServer,
    arguments: &[String],
    connections: usize,
    calls: usize,
) -> Figures {
    let (port, connections) = (redis.port().to_string(), connections.to_string());
    let number = calls.to_string();
    let mut words =
        vec!["-h", "127.0.0.1", "-p", &port, "-c", &connections, "-n", &number, "--csv", "EVALSHA"];
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
    Figures {
        count: calls,
        per_second,
        median: Duration::from_secs_f64(p50 / 1000.0),
        p99: Duration::from_secs_f64(p99 / 1000.0),
    }
}
