//! Watches over the store. Enters: every second, who the Redis node is and what it knows of the
//! realms. Leaves: each realm known to be ready, being refilled, or out of reach.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;
use twofactor_store::Inspection;

use crate::metrics::Metrics;
use crate::realm::record;
use crate::redis::refill::refill;
use crate::state::realms::{Readiness, Realm};
use crate::state::{Context, random};

/// How often to look.
const PERIOD: Duration = Duration::from_secs(1);
/// Realms that are filled at the same time.
const CONCURRENT_REFILLS: usize = 4;
/// The longest pause before a refill that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Watches until it is told to stop. Begins when the lists are complete.
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
            // A new realm is looked at at once: its first user is waiting.
            () = monitor.context.realms.changed.notified() => {}
        }
    }
    monitor.refills.shutdown().await;
}

struct RedisMonitor {
    context: Arc<Context>,
    refills: JoinSet<(String, bool)>,
    slots: Arc<Semaphore>,
    /// Namespaces whose refill failed: how often, and when to try again.
    failures: HashMap<String, (u32, Instant)>,
    /// Whether the store answered last time; a change is worth a log line.
    up: Option<bool>,
}

impl RedisMonitor {
    async fn check(&mut self) {
        while let Some(ended) = self.refills.try_join_next() {
            self.refill_finished(ended);
        }
        let realms = self.context.realms.all();
        let names = self.context.realms.all_names(&realms);
        match self.context.realms.store().inspect_realms(&names).await {
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

    /// Publishes the realm's own record: the configuration may be another than that of the process
    /// before, or have changed since. Tells whether the realm can be looked at.
    async fn publish_policy(&self, realm: &Realm) -> bool {
        let (now, random) = (self.context.clock.now(), &mut random());
        let version = realm.policy_version();
        // Its providers are being read, and this is done again when they are; until then the record
        // stays what it was.
        let Some(record) = record::known(&self.context, &realm.namespace) else { return true };
        match realm.publisher.publish_realm(&record, now, random).await {
            Ok(written) => {
                if written {
                    tracing::info!(namespace = realm.namespace, "published the realm's policy");
                }
                realm.policy_published(version);
                true
            }
            Err(error) => {
                tracing::warn!(namespace = realm.namespace, %error, "the realm's policy could not be published");
                false
            }
        }
    }

    /// Another node knows nothing of the services' logins.
    fn show_node(&self, inspection: Option<&Inspection>) {
        if let Some(inspection) = inspection {
            self.context.node.send_if_modified(|node| {
                let identity = inspection.identity();
                let changed = *node != identity;
                *node = identity;
                changed
            });
        }
    }

    fn log_availability(&mut self, up: bool, error: Option<&twofactor_store::StoreError>) {
        self.context.metrics.store_up.set(i64::from(up));
        if self.up == Some(up) {
            return;
        }
        if up {
            tracing::info!("Redis answers");
            self.context.removals.notify_one();
        } else if let Some(error) = error {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, cause, "users cannot be published until Redis answers; looking every second");
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
            Err(error) => tracing::error!(%error, "a refill ended in the middle"),
        }
    }

    fn count_users(&self) {
        let users = self.context.users.state();
        let mut counts: HashMap<String, (usize, usize)> = HashMap::new();
        for user in &users {
            let is_ready = user.status.as_ref().is_some_and(|status| {
                let mut conditions = status.conditions.iter();
                conditions.any(|condition| {
                    condition.type_ == labels::CONDITION_READY && condition.status == "True"
                })
            });
            let (all, ready) = counts.entry(user.namespace().unwrap_or_default()).or_default();
            *all += 1;
            *ready += usize::from(is_ready);
        }
        let ready = counts.values().map(|(_, ready)| ready).sum();
        self.context.metrics.show_users(ready, users.len() - ready);
        *self.context.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }
}

async fn fill(context: &Context, realm: &Realm, slots: &Semaphore) -> bool {
    let Ok(_slot) = slots.acquire().await else { return false };
    let begun = Instant::now();
    let result = refill(context, realm).await;
    Metrics::count(&context.metrics.refills, result.is_ok());
    match result {
        Ok(users) => {
            realm.set_readiness(Readiness::Ready);
            if !realm.is_policy_published() {
                // Its policy has changed meanwhile: somebody may wait to be let in.
                context.realms.changed.notify_one();
            }
            tracing::info!(namespace = realm.namespace, users, took = ?begun.elapsed(), "the realm is complete in Redis");
            true
        }
        Err(error) => {
            tracing::warn!(namespace = realm.namespace, %error, "the realm could not be filled; trying again");
            false
        }
    }
}
