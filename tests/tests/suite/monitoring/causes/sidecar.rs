//! Brings about a cause that needs no operator: without a login of its own, a namespace that is
//! withdrawn still reaches Redis.

use std::collections::BTreeSet;

use twofactor_core::realm::RealmRecord;
use twofactor_tests::redis::RedisServer;

use crate::monitoring::alarms::Alarms;
use crate::monitoring::observed::of_service;
use crate::support::sidecar::serve;
use crate::support::world::World;

#[tokio::test]
async fn an_alert_fires_about_a_namespace_that_is_no_longer_allowed() {
    let world = World::in_redis_with_real_time(RedisServer::start().await).await;
    let allow = async |namespace: &str| {
        let callers = Some(BTreeSet::from([namespace.to_owned()]));
        world.fill_with(&RealmRecord { callers, ..RealmRecord::default() }, &[]).await;
    };
    allow("shop").await;
    let credentials = world.credentials("shop");
    let sidecar = serve(credentials.path()).await;
    let alarms = Alarms::start(&[of_service("shop", sidecar.admin_port())]).await;
    alarms.fire(&["TwoFactorNamespaceNotAllowed"], async || allow("kms").await).await;
    alarms.assert_fire_in_time();
}
