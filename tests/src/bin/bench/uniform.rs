//! Measures what uniform answers cost, and the remaining difference between a user and an unknown
//! name.

use std::path::Path;
use std::time::Duration;

use twofactor_tests::redis::RedisServer;

use crate::load::{self, Asked};
use crate::realm::Realm;
use crate::{DURATION, serve, show};

/// Number of alternating turns, so that a busy moment affects all kinds of requests.
const TURNS: usize = 5;

pub(crate) async fn run(realm: &Realm, redis: &RedisServer, credentials: &Path) {
    realm.answer_uniformly(redis).await;
    let sidecar = serve(credentials).await;
    let code = realm.use_up_the_current_code(&sidecar.api()).await;
    let asked = |username: &str| {
        let code = code.expose_secret();
        let body = format!("{{\"username\":\"{username}\",\"otp_code\":\"{code}\"}}");
        Asked { method: "POST", path: "/auth/verify", body, status: 401 }
    };
    println!("\nUniform answers, one connection, the median of {TURNS} turns:\n");
    let turn = DURATION / u32::try_from(TURNS).expect("a small number");
    let (mut user, mut unknown) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        user.push(load::run(sidecar.api().base_url(), &asked("carol"), 1, turn).await.median);
        unknown.push(load::run(sidecar.api().base_url(), &asked("unknown"), 1, turn).await.median);
    }
    let (user, unknown) = (middle(&mut user), middle(&mut unknown));
    let ratio = unknown.as_secs_f64() / user.as_secs_f64();
    println!("a user {}, an unknown name {}, ratio {ratio:.2}", show(user), show(unknown));
}

fn middle(durations: &mut [Duration]) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}
