//! Checks every second which Redis node answers and what it knows of each realm, and starts a
//! refill of each realm that is incomplete.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twofactor_store::{Inspection, StoreError, StoreFailure};

use crate::metrics::Metrics;
use crate::realm::record;
use crate::redis::refill::refill;
use crate::state::realms::{Readiness, Realm};
use crate::state::{Context, random};

/// Interval between checks.
const PERIOD: Duration = Duration::from_secs(1);
/// Maximum number of realms that are filled at the same time.
const CONCURRENT_REFILLS: usize = 4;
/// Longest delay before a failed refill is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Checks Redis until `stop`. The lists must be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut monitor = RedisMonitor {
        refills: JoinSet::new(),
        slots: Arc::new(Semaphore::new(CONCURRENT_REFILLS)),
        failures: HashMap::new(),
        up: None,
        context,
    };
    loop {
        monitor.check().await;
        monitor.count_users();
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(PERIOD) => {}
            // A new realm is checked at once, because its first user waits.
            () = monitor.context.realms.registry.changed.notified() => {}
        }
    }
    monitor.refills.shutdown().await;
}

struct RedisMonitor {
    context: Arc<Context>,
    refills: JoinSet<(String, bool)>,
    slots: Arc<Semaphore>,
    /// Failures in a row of each namespace's refill, and when to try again.
    failures: HashMap<String, (u32, Instant)>,
    /// Whether Redis answered last time. Only a change is logged.
    up: Option<bool>,
}

impl RedisMonitor {
    async fn check(&mut self) {
        while let Some(ended) = self.refills.try_join_next() {
            self.refill_finished(ended);
        }
        let realms = self.context.realms.registry.all();
        let names = self.context.realms.registry.all_names(&realms);
        match self.context.realms.registry.store().inspect_realms(&names).await {
            Ok(inspections) => {
                self.log_availability(true, None);
                self.show_node(inspections.first());
                for (realm, inspection) in realms.into_iter().zip(inspections) {
                    if inspection.ready
                        && !realm.is_policy_published()
                        && !self.publish_policy(&realm).await
                    {
                        continue;
                    }
                    self.handle_inspection(realm, &inspection);
                }
            }
            Err(error) => {
                self.log_availability(false, Some(&error));
                for realm in realms {
                    realm.set_readiness(Readiness::Unavailable);
                }
            }
        }
    }

    /// Publishes the record of a realm if it has changed or was published by another process.
    /// Returns whether the check of the realm can go on.
    async fn publish_policy(&self, realm: &Realm) -> bool {
        let (now, random) = (self.context.runtime.clock.now(), &mut random());
        let version = realm.policy_version();
        // The record is published when the Secrets have been read. Until then the old one stays.
        let Some(record) = record::known(&self.context.realms, &realm.namespace) else {
            return true;
        };
        match realm.publisher.publish_realm(&record, now, random).await {
            Ok(written) => {
                if written {
                    tracing::info!(namespace = realm.namespace, "policy of a realm published");
                }
                realm.policy_published(version);
                true
            }
            Err(error) => {
                tracing::warn!(namespace = realm.namespace, %error, "failed to publish the policy of a realm");
                false
            }
        }
    }

    /// Announces another node, which does not have the logins of services.
    fn show_node(&self, inspection: Option<&Inspection>) {
        if let Some(inspection) = inspection {
            self.context.runtime.node.send_if_modified(|node| {
                let identity = inspection.identity();
                let changed = *node != identity;
                *node = identity;
                changed
            });
        }
    }

    fn log_availability(&mut self, up: bool, error: Option<&StoreError>) {
        self.context.runtime.metrics.store_up.set(i64::from(up));
        let failure = error.map(StoreError::failure);
        if let Some(failure) = failure {
            self.context.runtime.metrics.store_failed(failure);
        }
        if self.up == Some(up) {
            return;
        }
        if up {
            tracing::info!("Redis answers");
            self.context.runtime.removals.notify_one();
        } else if failure == Some(StoreFailure::TooManyClients) {
            tracing::warn!(
                "failed to reach Redis, because it has too many clients; users are published when it accepts the operator"
            );
        } else if let Some(error) = error {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, cause, "failed to reach Redis; users are published when it answers");
        }
        self.up = Some(up);
    }

    fn handle_inspection(&mut self, realm: Arc<Realm>, inspection: &Inspection) {
        if inspection.ready {
            self.failures.remove(&realm.namespace);
            realm.set_readiness(Readiness::Ready);
            return;
        }
        let waits = self.failures.get(&realm.namespace).is_some_and(|(_, at)| *at > Instant::now());
        if waits || !realm.begin_refill() {
            return;
        }
        realm.set_readiness(Readiness::Pending);
        let (context, slots) = (self.context.clone(), self.slots.clone());
        self.refills.spawn(async move {
            let success = fill(&context, &realm, &slots).await;
            realm.end_refill();
            (realm.namespace.clone(), success)
        });
    }

    fn refill_finished(&mut self, ended: Result<(String, bool), tokio::task::JoinError>) {
        match ended {
            Ok((namespace, true)) => {
                self.failures.remove(&namespace);
            }
            Ok((namespace, false)) => {
                let (count, at) = self.failures.entry(namespace).or_insert((0, Instant::now()));
                let pause = PERIOD
                    .saturating_mul(1_u32.checked_shl(*count).unwrap_or(u32::MAX))
                    .min(LONGEST_PAUSE);
                (*count, *at) = (count.saturating_add(1), Instant::now() + pause);
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => tracing::error!(%error, "refill cancelled"),
        }
    }

    fn count_users(&self) {
        let (users, ready) = self.context.users.objects.count_all();
        self.context.runtime.metrics.show_users(ready, users - ready);
    }
}

async fn fill(context: &Context, realm: &Realm, slots: &Semaphore) -> bool {
    let Ok(_slot) = slots.acquire().await else { return false };
    let begun = Instant::now();
    let result = refill(context, realm).await;
    Metrics::count(&context.runtime.metrics.refills, result.is_ok());
    match result {
        Ok(users) => {
            realm.set_readiness(Readiness::Ready);
            if !realm.is_policy_published() {
                // The policy changed during the refill, and an allowed namespace may wait for it.
                context.realms.registry.changed.notify_one();
            }
            tracing::info!(namespace = realm.namespace, users, took = ?begun.elapsed(), "realm filled in Redis");
            true
        }
        Err(error) => {
            tracing::warn!(namespace = realm.namespace, %error, "failed to fill a realm in Redis; trying again");
            false
        }
    }
}
