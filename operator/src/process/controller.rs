//! Runs the controller: one replica leads, and the others wait for the Lease with the realms and
//! namespaces already known.

use kube::Client;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::{Check, NamedChecks};
use twofactor_store::redis::SettingsWatch;

use super::DRAIN;
use super::config::Configuration;
use super::error::StartError;
use super::leader::Leader;
use super::obstacle::Need;
use super::replica::Replica;
use super::tasks::Tasks;
use crate::k8s::watch_signs::WatchSigns;
use crate::metrics::{self, Metrics};
use crate::redis::{certificate, ownership};

/// Runs the controller until `stop`, and then finishes what is in progress.
pub async fn run(
    configuration: Configuration,
    client: Client,
    signs: WatchSigns,
    stop: CancellationToken,
) -> Result<(), StartError> {
    // The URL is checked now and not when this replica leads for the first time, so that a new
    // version with an invalid one does not become ready.
    configuration.redis.check()?;
    let mut registrar = metrics::registrar()?;
    let metrics = Metrics::new(&mut registrar)?;
    for need in Need::ALL {
        metrics.show_need(need.name(), false);
    }
    metrics.show_need(ownership::NEED, false);
    let replica = Replica::new(signs);
    let mut tasks = Tasks::default();
    let (leading, redis) = (Check::informational("leading"), Check::informational("redis"));
    let redis_settings = NamedChecks::new(SettingsWatch::check_names());
    let checks = [leading.clone(), redis.clone()].into_iter().chain(redis_settings.all());
    replica.serve_admin(&mut tasks, configuration.admin_listen, checks, registrar, &stop).await?;
    replica.watch(
        &mut tasks,
        &client,
        &configuration.namespaces,
        &metrics.realms_unreadable,
        &stop,
    );
    if let Some(source) = configuration.redis.certificate.clone() {
        let made = certificate::make(source, client.clone(), stop.clone());
        tasks.spawn("redis certificate", made);
    }
    let leader = Leader {
        configuration,
        client,
        metrics,
        policies: replica.policies,
        policies_synced: replica.synced,
        refused: replica.refused,
        leading,
        redis,
        redis_settings,
    };
    tasks.spawn_fallible("leader", leader.run(stop.clone()));
    tasks.supervise(&stop, DRAIN).await
}
