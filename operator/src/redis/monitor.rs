//! Checks every second which Redis node answers and what it knows of the realms that are due, and
//! starts a refill of each realm that is incomplete.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use twofactor_core::decision::Undecided;
use twofactor_store::redis::{Nodes, RedisStore};
use twofactor_store::{Inspection, StoreError, StoreFailure};

use crate::metrics::{Metrics, Pass, number};
use crate::realm::record;
use crate::redis::comparison;
use crate::redis::ownership::{Owner, Ownership};
use crate::redis::refill::refill;
use crate::redis::schedule::Schedule;
use crate::state::credentials::Isolation;
use crate::state::realms::{Readiness, Realm};
use crate::state::{Context, random};

/// Interval between passes.
const PERIOD: Duration = Duration::from_secs(1);
/// Interval between passes while Redis does not answer. Sidecars refuse all codes until a pass has
/// found that a restarted Redis lost nothing.
const PERIOD_AWAY: Duration = Duration::from_millis(250);
/// Interval between the heartbeats that sidecars see.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Maximum number of realms that are filled at the same time.
const CONCURRENT_REFILLS: usize = 8;
/// Maximum number of these whose last refill failed, so that they do not delay a new realm.
const CONCURRENT_RETRIES: usize = 2;
/// Maximum number of policies that are published at the same time.
const CONCURRENT_POLICIES: usize = 16;

/// Checks Redis until `stop`. The lists must be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut monitor = RedisMonitor {
        refills: JoinSet::new(),
        slots: Arc::new(Semaphore::new(CONCURRENT_REFILLS)),
        retries: Arc::new(Semaphore::new(CONCURRENT_RETRIES)),
        schedule: Schedule::default(),
        up: None,
        heartbeat_at: None,
        ownership: Ownership::default(),
        identity: String::new(),
        context,
    };
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {
                monitor.check(true).await;
                monitor.count();
            }
            () = tokio::time::sleep(PERIOD_AWAY), if monitor.up == Some(false) => {
                monitor.check(true).await;
            }
            // A new realm is checked at once, because its first user waits.
            () = monitor.context.realms.registry.changed.notified() => monitor.check(false).await,
        }
    }
    monitor.refills.shutdown().await;
}

struct RedisMonitor {
    context: Arc<Context>,
    refills: JoinSet<(String, bool)>,
    slots: Arc<Semaphore>,
    retries: Arc<Semaphore>,
    schedule: Schedule,
    /// When sidecars were last shown that an operator works.
    heartbeat_at: Option<Instant>,
    ownership: Ownership,
    /// Whether Redis answered last time. Only a change is logged.
    up: Option<bool>,
    /// The identity of the nodes that answered last.
    identity: String,
}

impl RedisMonitor {
    /// Checks the nodes and the realms that are due.
    async fn check(&mut self, turns: bool) {
        while let Some(ended) = self.refills.try_join_next() {
            self.refill_finished(ended);
        }
        let mut realms = self.context.realms.registry.all();
        realms.retain(|realm| !realm.is_refilling());
        let of_schedule: Vec<(&str, bool)> = realms
            .iter()
            .map(|realm| {
                let settled = realm.readiness() == Readiness::Ready && realm.is_policy_published();
                (realm.namespace.as_str(), !settled)
            })
            .collect();
        let due = self.schedule.due(&of_schedule, turns, Instant::now());
        if due.is_empty() && !turns {
            return;
        }
        let chosen: HashSet<usize> = due.into_iter().collect();
        let (due, others): (Vec<_>, Vec<_>) =
            realms.into_iter().enumerate().partition(|(position, _)| chosen.contains(position));
        let others: Vec<Arc<Realm>> = others.into_iter().map(|(_, realm)| realm).collect();
        let due = due.into_iter().map(|(_, realm)| realm).collect();
        // What one realm has lost, the others may have lost too.
        if self.check_realms(due).await {
            self.check_realms(others).await;
        }
    }

    /// Checks realms. Returns whether the others have to be checked too: Redis is another process,
    /// or has lost something, or does not answer.
    async fn check_realms(&mut self, realms: Vec<Arc<Realm>>) -> bool {
        let context = self.context.clone();
        let registry = &context.realms.registry;
        let checked = async {
            let nodes = registry.store().nodes().await?;
            // Before anything is written, also by the tasks that a new node wakes.
            if self.ownership.check(&context.runtime, registry.store()).await? == Owner::Another {
                return Ok(None);
            }
            // The logins of services are set while the realms are checked.
            let replaced = self.show_nodes(&nodes);
            if self.heartbeat_at.is_none_or(|at| at.elapsed() >= HEARTBEAT) {
                self.heartbeat_at = Some(Instant::now());
                // A Redis without memory refuses it, and can still be checked.
                if let Err(error) = write_heartbeats(&context, &nodes).await {
                    tracing::debug!(%error, "failed to write the heartbeat");
                }
            }
            let stores: Vec<RedisStore> = realms.iter().map(|realm| realm.store.clone()).collect();
            let inspections = registry.store().check_realms(&nodes, &stores, &mut random()).await?;
            Ok::<_, StoreError>(Some((replaced, inspections)))
        };
        let (mut lost, inspections) = match checked.await {
            Ok(Some(checked)) => checked,
            Ok(None) => {
                for realm in registry.all() {
                    realm.set_readiness(Readiness::OwnedByAnother);
                }
                self.log_availability(true, None);
                return false;
            }
            Err(error) => {
                for realm in registry.all() {
                    realm.set_readiness(Readiness::Unavailable);
                }
                self.log_availability(false, Some(&error));
                if error.is_busy() {
                    end_scripts(registry.store()).await;
                }
                return false;
            }
        };
        self.log_availability(true, None);
        self.context.runtime.metrics.passed(Pass::Check, self.context.runtime.clock.now());
        let kept = inspections.iter().filter(|inspection| inspection.kept).count();
        if kept > 0 {
            self.context.runtime.metrics.kept.inc_by(kept as u64);
            tracing::info!(
                realms = kept,
                "Redis was restarted or failed over and has kept everything"
            );
        }
        let unpublished = realms.iter().zip(&inspections);
        let unpublished: Vec<_> = unpublished
            .filter(|(realm, found)| found.ready && !realm.is_policy_published())
            .map(|(realm, _)| realm.clone())
            .collect();
        let failed = self.publish_policies(unpublished).await;
        for (realm, inspection) in realms.into_iter().zip(inspections) {
            self.schedule.checked(&realm.namespace, Instant::now());
            lost |= realm.readiness() == Readiness::Ready && !inspection.ready;
            if !failed.contains(&realm.namespace) {
                self.handle_inspection(realm, &inspection);
            }
        }
        lost
    }

    /// Publishes the policies of realms. Returns the namespaces of those that failed.
    async fn publish_policies(&self, realms: Vec<Arc<Realm>>) -> HashSet<String> {
        let policies = realms.into_iter().map(|realm| async move {
            let published = self.publish_policy(&realm).await;
            (!published).then(|| realm.namespace.clone())
        });
        let results: Vec<Option<String>> =
            stream::iter(policies).buffer_unordered(CONCURRENT_POLICIES).collect().await;
        results.into_iter().flatten().collect()
    }

    /// Publishes the record of a realm if it has changed or was published by another process.
    /// Returns whether the check of the realm can go on.
    async fn publish_policy(&self, realm: &Realm) -> bool {
        let now = self.context.runtime.clock.now();
        let version = realm.policy_version();
        // The record is published when the Secrets have been read. Until then the old one stays.
        let Some(record) = record::known(&self.context.realms, &realm.namespace) else {
            return true;
        };
        let published = record::publish(realm, &record, now).await;
        self.context.realm_written(realm);
        match published {
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

    /// Announces other nodes, which may lack the logins of services. Returns whether a node that
    /// decides was replaced.
    fn show_nodes(&mut self, nodes: &Nodes) -> bool {
        self.context.runtime.node.send_if_modified(|known| {
            let servers = nodes.servers();
            let changed = *known != servers;
            *known = servers;
            changed
        });
        let identity = nodes.identity();
        std::mem::replace(&mut self.identity, identity.clone()) != identity
    }

    fn log_availability(&mut self, up: bool, error: Option<&StoreError>) {
        self.context.runtime.metrics.store_up.set(i64::from(up));
        let failure = error.map(StoreError::failure);
        let is_refused = failure == Some(StoreFailure::AccessRefused);
        let was_refused = self.context.runtime.is_login_refused.swap(is_refused, Ordering::Relaxed);
        if let Some(failure) = failure {
            self.context.runtime.metrics.store_failed(failure);
            // Its password or its certificate may be another one by now.
            self.context.runtime.redis_failed.notify_one();
        }
        // A closed connection may be the first sign of another password.
        let is_news = self.up != Some(up) || (is_refused && !was_refused);
        if !is_news {
            return;
        }
        if up {
            tracing::info!("Redis answers");
            self.context.runtime.removals.notify_one();
            self.context.runtime.realm_removals.notify_one();
        } else if failure == Some(StoreFailure::TooManyClients) {
            tracing::warn!(
                "failed to reach Redis, because it has too many clients; users are published when it accepts the operator"
            );
        } else if is_refused {
            tracing::warn!(
                "failed to reach Redis, because it refuses the operator's login; its password is read again"
            );
        } else if let Some(StoreError::Undecided(Undecided::ClockOff { .. })) = error {
            tracing::warn!(
                "failed to check Redis, because its clock and that of the operator differ by more than a minute"
            );
        } else if let Some(error) = error {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, cause, "failed to reach Redis; users are published when it answers");
        }
        self.up = Some(up);
    }

    fn handle_inspection(&mut self, realm: Arc<Realm>, inspection: &Inspection) {
        if inspection.ready {
            self.schedule.complete(&realm.namespace);
            if inspection.kept {
                realm.compare_next(None);
            }
            if realm.set_readiness(Readiness::Ready) || inspection.kept {
                self.context.runtime.comparisons.notify_one();
            }
            return;
        }
        if self.context.runtime.refused.is_unlisted(&realm.namespace) {
            // The users of the realm are not known, so it cannot be declared complete.
            realm.set_readiness(Readiness::Pending);
            return;
        }
        if !realm.begin_refill() {
            return;
        }
        realm.set_readiness(Readiness::Pending);
        let slots =
            if self.schedule.has_failed(&realm.namespace) { &self.retries } else { &self.slots };
        let (context, slots) = (self.context.clone(), slots.clone());
        self.refills.spawn(async move {
            let success = fill(&context, &realm, &slots).await;
            realm.end_refill();
            (realm.namespace.clone(), success)
        });
    }

    fn refill_finished(&mut self, ended: Result<(String, bool), tokio::task::JoinError>) {
        match ended {
            Ok((namespace, true)) => self.schedule.complete(&namespace),
            Ok((namespace, false)) => self.schedule.failed(&namespace, Instant::now()),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => tracing::error!(%error, "refill cancelled"),
        }
    }

    /// Shows the numbers of users, of realms, and of removals.
    fn count(&self) {
        let metrics = &self.context.runtime.metrics;
        let (ready, others) = self.context.users.objects.count_all();
        metrics.show_users(ready, &others);
        let realms = self.context.realms.registry.all();
        let of = |state| realms.iter().filter(|realm| realm.readiness() == state).count();
        metrics.show_realm_states([
            ("ready", of(Readiness::Ready)),
            ("filling", of(Readiness::Pending)),
            ("unavailable", of(Readiness::Unavailable)),
            ("owned-by-another", of(Readiness::OwnedByAnother)),
        ]);
        let removals = realms.iter().map(|realm| realm.removals()).sum::<usize>();
        metrics.removals_pending.set(number(removals));
    }
}

/// Writes the heartbeat that all realms share. Where every service could write it, realms in which
/// its age matters have one of their own.
async fn write_heartbeats(context: &Context, nodes: &Nodes) -> Result<(), StoreError> {
    let registry = &context.realms.registry;
    registry.store().write_heartbeat(nodes).await?;
    if *context.services.isolation.borrow() != Isolation::PerRealm {
        return Ok(());
    }
    let has_maximum = |realm: &Arc<Realm>| {
        let policy = context.realms.policies.policy(&realm.namespace);
        policy.is_some_and(|policy| policy.max_staleness.is_some())
    };
    let realms = registry.all().into_iter().filter(has_maximum);
    let stores: Vec<RedisStore> = realms.map(|realm| realm.store.clone()).collect();
    registry.store().write_realm_heartbeats(&stores).await
}

/// Ends a script that stops Redis for every realm.
async fn end_scripts(store: &RedisStore) {
    match store.kill_scripts().await {
        Ok(0) => tracing::error!("failed to end a script that stops Redis, because it has written"),
        Ok(_) => tracing::warn!("a script that stopped Redis was ended"),
        Err(error) => tracing::debug!(%error, "failed to end a script that stops Redis"),
    }
}

async fn fill(context: &Context, realm: &Realm, slots: &Semaphore) -> bool {
    let Ok(_slot) = slots.acquire().await else { return false };
    let begun = Instant::now();
    let result = refill(context, realm).await;
    context.realm_written(realm);
    Metrics::count(&context.runtime.metrics.refills, result.is_ok());
    match result {
        Ok(users) => {
            // The refill has compared the realm.
            realm.compare_next(Some(comparison::next()));
            if users > 0 && realm.store.is_cluster() {
                // The master with the set of users may have lost names of which others have keys.
                context.runtime.is_search_due.store(true, Ordering::Relaxed);
                context.runtime.realm_removals.notify_one();
            }
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
