//! Acts as a hostile namespace with the real login of a sidecar: it tries to bring its own Lua, to
//! keep Redis busy, to block it, and to fill it. Another realm verifies throughout, and the
//! namespace is withdrawn at any moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult, Value};
use tokio::task::JoinSet;
use twofactor_core::names::{Pseudonym, RealmNames};
use twofactor_store::redis::scripts::{self, Kind, ScriptCall, Source};
use twofactor_tests::operator::OperatorProcess;
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, Sidecar, code_of};

/// Promised time until a withdrawal takes effect.
const WITHDRAWN: Duration = Duration::from_secs(2);
/// Time within which 99 of 100 verifies of another realm are answered: 50 ms are promised, the rest
/// is for a busy machine.
const ANSWERED: Duration = Duration::from_millis(200);
/// Longest time for which one of the neighbour's commands keeps Redis from others, with the same
/// margin: 10 ms in a Redis that has a processor.
const LONGEST: Duration = Duration::from_millis(50);
/// Number of verifies that are timed.
const VERIFIES: usize = 200;
/// Maximum number of times that this is repeated, because other tests share the machine.
const ROUNDS: usize = 8;
/// Number of the neighbour's connections that do the same.
const CONNECTIONS: usize = 2;
/// Length of the neighbour's large values: what `proto-max-bulk-len` permits in the chart's Redis.
const LARGE: usize = 1024 * 1024;

/// A realm that is attacked, and a neighbour that another realm of the same Redis allows.
struct Street {
    cluster: Cluster,
    _operator: OperatorProcess,
    /// A sidecar of the realm that is attacked.
    victim: Sidecar,
    /// The realm that allows the neighbour.
    realm: String,
    neighbour: String,
    /// The neighbour's URL of Redis, as the operator wrote it.
    url: String,
    names: RealmNames,
}

fn realm(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata: {{name: default, namespace: \
         {namespace}}}\nspec: {{{spec}}}\n---\n"
    )
}

impl Street {
    async fn start() -> Self {
        // As the chart configures its Redis.
        let limits = ["--proto-max-bulk-len", "1mb", "--slowlog-log-slower-than", "500"];
        let redis = RedisServer::builder().args(limits).start().await;
        let cluster = Cluster::with_redis(redis).await;
        let realm_of_neighbour = cluster.another_namespace("theirs");
        let neighbour = cluster.another_namespace("neighbour");
        let operator = cluster.operator().args(["--namespace", &realm_of_neighbour]).start().await;
        let user = |namespace: &str| {
            format!(
                "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: {{name: carol, namespace: \
                 {namespace}}}\nspec: {{deliveryMethod: app}}\n---\n"
            )
        };
        let allowing = format!("allowedNamespaces: {{names: [{neighbour}]}}");
        let manifest = [
            user(&cluster.namespace),
            user(&realm_of_neighbour),
            realm(&realm_of_neighbour, &allowing),
        ];
        cluster.apply_anywhere(&manifest.concat());
        cluster.wait_ready("carol").await;
        cluster.ask_for(&realm_of_neighbour, &neighbour);
        let value = async |key: &str| {
            let what = format!("{key} of the neighbour's credentials");
            eventually(BOUND, what, async || {
                cluster.credentials_of(&realm_of_neighbour, &neighbour, key)
            })
            .await
        };
        let url = value("redis-url").await;
        let (installation, id) = (value("installation").await, value("realm").await);
        let names = RealmNames::new(&installation.parse().unwrap(), &id.parse().unwrap());
        let victim = cluster.sidecar().await;
        victim.wait_accepted("carol", &cluster.seed("carol")).await;
        let realm = realm_of_neighbour;
        Self { cluster, _operator: operator, victim, realm, neighbour, url, names }
    }

    async fn connect(&self) -> MultiplexedConnection {
        patient(&self.url).await
    }

    /// The neighbour's keys of one user, and it can make up any number of users.
    fn user(&self, number: u8) -> twofactor_core::names::UserNames {
        self.names.user(&Pseudonym::from_bytes([number; 16]))
    }

    /// Has the neighbour do something over several connections, again and again, while another
    /// realm verifies; and expects the answers in the promised time.
    async fn verifies_while<F: Future<Output = ()> + Send + 'static>(
        &self,
        what: &str,
        act: impl Fn(MultiplexedConnection) -> F + Clone + Send + 'static,
    ) {
        let stop = Arc::new(AtomicBool::new(false));
        let mut neighbours = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (connection, act, stop) = (self.connect().await, act.clone(), stop.clone());
            neighbours.spawn(async move {
                let mut acts = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    act(connection.clone()).await;
                    acts += 1;
                }
                acts
            });
        }
        let _: () = self.cluster.redis.ask(&["SLOWLOG", "RESET"]).await;
        let mut slowest = Vec::new();
        for _ in 0..ROUNDS {
            slowest.push(self.slow_verify().await);
            if slowest.last().unwrap() < &ANSWERED {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let acts: u32 = neighbours.join_all().await.into_iter().sum();
        let longest = self.longest_command().await;
        eprintln!("{what}: {acts} times, longest command {longest:?}, p99 of verify {slowest:?}");
        assert!(longest < LONGEST, "{what}: {longest:?}");
        assert!(acts > 0);
        assert!(slowest.iter().any(|slow| *slow < ANSWERED), "{what}: {slowest:?}");
    }

    /// The longest time that one command has taken in Redis.
    async fn longest_command(&self) -> Duration {
        let log: Vec<Vec<Value>> = self.cluster.redis.ask(&["SLOWLOG", "GET", "-1"]).await;
        let times = log.iter().map(|entry| redis::from_redis_value::<u64>(entry[2].clone()));
        Duration::from_micros(times.map(Result::unwrap).max().unwrap_or_default())
    }

    /// Verifies many times, and returns the time within which 99 of 100 were answered.
    async fn slow_verify(&self) -> Duration {
        let code = code_of(&self.cluster.seed("carol"));
        let mut times = Vec::with_capacity(VERIFIES);
        for _ in 0..VERIFIES {
            let began = Instant::now();
            let reply = self.victim.api.verify("carol", &code).await;
            // Used, or accepted in a new step; a code of the last step is used too.
            assert!([200, 400].contains(&reply.status), "{}: {}", reply.status, reply.body);
            times.push(began.elapsed());
        }
        times.sort_unstable();
        times[VERIFIES - 1 - VERIFIES / 100]
    }
}

/// A connection that waits for answers without a bound.
async fn patient(url: &str) -> MultiplexedConnection {
    let configuration = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url).unwrap();
    client.get_multiplexed_async_connection_with_config(&configuration).await.unwrap()
}

async fn ask(connection: &mut MultiplexedConnection, words: &[&[u8]]) -> RedisResult<Value> {
    let mut command = redis::cmd(std::str::from_utf8(words[0]).unwrap());
    command.arg(&words[1..]).query_async(connection).await
}

/// Calls of a script with valid arguments, one call for each text, which is long.
fn long_calls<C: ScriptCall>(keys: &[String]) -> Vec<redis::Cmd> {
    let texts = C::ARGUMENTS.iter().filter(|(_, kind)| matches!(kind, Kind::Text));
    let call = |(long, _): &(&str, Kind)| {
        let mut command = redis::cmd("EVALSHA");
        command.arg(C::script(Source::Publisher).hash()).arg(C::KEYS.len());
        command.arg(&keys[..C::KEYS.len()]);
        for (name, _) in C::ARGUMENTS {
            if name == long {
                command.arg("1,".repeat(LARGE / 2 - 1));
            } else {
                command.arg(1);
            }
        }
        command
    };
    texts.map(call).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_keeps_redis_busy_neither_stops_others_nor_delays_its_withdrawal() {
    let street = Street::start().await;
    let user = street.user(7);
    let (state, otp, history) = (user.state.clone(), user.otp.clone(), user.history.clone());

    // It cannot bring Lua, nor block, nor read what other programs do.
    let mut connection = street.connect().await;
    let endless: &[u8] = b"while true do end";
    for words in [
        &[b"EVAL".as_slice(), endless, b"0"][..],
        &[b"SCRIPT", b"LOAD", endless],
        &[b"FUNCTION", b"LOAD", b"#!lua name=a\nredis.register_function('a', function() end)"],
        &[b"FCALL", b"a", b"0"],
        &[b"BLPOP", history.as_bytes(), b"0"],
        &[b"XREAD", b"BLOCK", b"0", b"STREAMS", user.log.as_bytes(), b"$"],
        &[b"CLIENT", b"PAUSE", b"10000"],
        &[b"MONITOR"],
        &[b"KEYS", b"*"],
    ] {
        let refused = ask(&mut connection, words).await.unwrap_err().to_string();
        assert!(refused.to_uppercase().contains("NOPERM"), "{words:?}: {refused}");
    }

    // The scripts that are there, with arguments that are as long as Redis takes them.
    let keys = [state.clone(), otp.clone(), history.clone()];
    let calls = [
        long_calls::<scripts::Verify<'_>>(&keys),
        long_calls::<scripts::Issue<'_>>(&keys),
        long_calls::<scripts::RecordDelivery<'_>>(&keys),
    ]
    .concat();
    for call in &calls {
        let refused = call.exec_async(&mut connection).await.unwrap_err().to_string();
        assert!(refused.contains("too long"), "{refused}");
    }
    street
        .verifies_while("long arguments", move |mut connection| {
            let calls = calls.clone();
            async move {
                for call in calls {
                    let _ = call.exec_async(&mut connection).await;
                }
            }
        })
        .await;

    // Waiting for replicas that do not exist blocks only the connection that waits.
    street
        .verifies_while("waiting", |mut connection| async move {
            let _ = ask(&mut connection, &[b"WAIT", b"9", b"500"]).await;
        })
        .await;

    // Large values, and reading them again.
    let large = vec![b'x'; LARGE - 1024];
    let key = state.clone();
    street
        .verifies_while("large values", move |mut connection| {
            let (key, large) = (key.clone(), large.clone());
            async move {
                let _ = ask(&mut connection, &[b"HSET", key.as_bytes(), b"a", &large]).await;
                let _ = ask(&mut connection, &[b"HGET", key.as_bytes(), b"a"]).await;
            }
        })
        .await;

    // Many keys and many fields.
    let key = otp.clone();
    street
        .verifies_while("many fields", move |mut connection| {
            let key = key.clone();
            async move {
                let mut pipeline = redis::pipe();
                for number in 0..100 {
                    pipeline.cmd("HSET").arg(&key).arg(number).arg("x").ignore();
                }
                pipeline.cmd("HGETALL").arg(&key).ignore();
                let _: RedisResult<()> = pipeline.query_async(&mut connection).await;
            }
        })
        .await;

    // It is shut out while it goes on.
    let mut connection = street.connect().await;
    let busy = tokio::spawn(async move {
        let key = state;
        while ask(&mut connection, &[b"HGETALL", key.as_bytes()]).await.is_ok() {}
    });
    street.cluster.apply_anywhere(&realm(&street.realm, "issuer: A"));
    let withdrawn = Instant::now();
    tokio::time::timeout(BOUND, busy).await.expect("its connections to be closed").unwrap();
    assert!(withdrawn.elapsed() < WITHDRAWN, "{:?}", withdrawn.elapsed());
    let client = Client::open(street.url.as_str()).unwrap();
    assert!(client.get_multiplexed_async_connection().await.is_err());
    eventually(BOUND, "its credentials to be removed", async || {
        street.cluster.credentials_of(&street.realm, &street.neighbour, "caller").is_none()
    })
    .await;
}

#[tokio::test]
async fn the_operator_ends_a_script_that_stops_redis() {
    let limits = ["--busy-reply-threshold", "200"];
    let cluster = Cluster::with_redis(RedisServer::builder().args(limits).start().await).await;
    let operator = cluster.operator().start().await;
    cluster.apply(&crate::support::cluster::app_user("carol"));
    cluster.wait_ready("carol").await;
    let mut administrator = patient(&cluster.redis.url()).await;
    let ended = tokio::spawn(async move {
        redis::cmd("EVAL").arg("while true do end").arg(0).exec_async(&mut administrator).await
    });
    let error = tokio::time::timeout(BOUND, ended).await.expect("an end").unwrap().unwrap_err();
    assert!(error.to_string().contains("Script killed"), "{error}");
    eventually(BOUND, "the log to say so", async || {
        operator.process().output().contains("a script that stopped Redis was ended")
    })
    .await;
    let sidecar = cluster.sidecar().await;
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;
}
