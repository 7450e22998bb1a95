//! Measures what uniform answers cost, and the remaining difference between a user and an unknown
//! name.

use std::time::Duration;

use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod;
use twofactor_tests::redis::RedisServer;

use crate::realm::{self, Realm};
use crate::verify::serve;
use crate::{load, show};

/// Duration of a turn.
const TURN: Duration = Duration::from_secs(1);
/// Number of alternating turns, so that a busy moment affects all kinds of requests.
const TURNS: usize = 5;

pub(crate) async fn run() {
    let redis = RedisServer::start().await;
    let policy = RealmRecord::default();
    let realm = Realm::publish(&redis, &policy, 1, DeliveryMethod::App).await;
    realm.answer_uniformly(&redis).await;
    let sidecar = serve(realm.credentials(&redis).path()).await;
    let code = realm.current_code(0);
    let known = realm::verify(0, &code, 401);
    // The first request uses the code, so the others are refused.
    let _ = sidecar.api().verify(&realm::username(0), code.expose_secret()).await;
    let unknown = realm::verify(1, &code, 401);
    println!("\nUniform answers, one connection, the median of {TURNS} turns:\n");
    let (mut of_user, mut of_unknown) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        of_user.push(load::repeat(sidecar.api().base_url(), &known, 1, TURN).await.median);
        of_unknown.push(load::repeat(sidecar.api().base_url(), &unknown, 1, TURN).await.median);
    }
    let (user, unknown) = (middle(&mut of_user), middle(&mut of_unknown));
    let ratio = unknown.as_secs_f64() / user.as_secs_f64();
    println!("a user {}, an unknown name {}, ratio {ratio:.2}", show(user), show(unknown));
}

fn middle(durations: &mut [Duration]) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}
