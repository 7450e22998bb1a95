//! Claims the installation's data in Redis for this operator, and shows that it lives. If another
//! operator owns them, nothing is written to Redis until that one shows no life any more, or an
//! administrator says that it is to be replaced.
//!
//! A cluster that is restored from a snapshot of etcd beside the original has its Secrets, its UIDs
//! and its mark. But the mark of the original goes on, so that of the copy is older.

use std::time::{Duration, Instant};

use twofactor_api::labels;
use twofactor_core::owner::OwnerMark;
use twofactor_store::StoreError;
use twofactor_store::redis::RedisStore;

use crate::k8s::events::Notice;
use crate::state::redis_owner::RedisOwner;
use crate::state::{Runtime, random};

/// Interval between signs of life.
const RENEWAL: Duration = Duration::from_secs(5);
/// Time without a sign of life, while Redis answers, after which another owner is replaced.
const PATIENCE: Duration = Duration::from_mins(1);
/// Interval after which another owner is reported again, because Events expire within an hour.
const REMINDER: Duration = Duration::from_mins(10);
/// What the leader needs, as the value of the metric's label.
pub const NEED: &str = "redis-owner";

/// Who owns the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This operator.
    This,
    /// Another one.
    Another,
}

/// What this process knows about the owner.
#[derive(Debug, Default)]
pub struct Ownership {
    phase: Phase,
    reported: Option<(String, Instant)>,
}

#[derive(Debug, Default)]
enum Phase {
    /// Nothing yet.
    #[default]
    Unknown,
    /// This operator is the owner, and has shown that it lives at this moment.
    Owned(Instant),
    /// Another one is.
    Waiting(Observation),
}

/// The last mark of another owner that was observed.
#[derive(Debug)]
struct Observation {
    held: Option<String>,
    since: Instant,
    /// The mark with which this operator replaces it. The Lease has to hold it first.
    successor: Option<OwnerMark>,
}

impl Observation {
    fn new(held: Option<String>, now: Instant) -> Self {
        Self { held, since: now, successor: None }
    }

    /// Takes note of what Redis holds. Returns whether it has not changed for long enough.
    fn see(&mut self, held: Option<String>, now: Instant) -> bool {
        if self.held != held {
            (self.held, self.since) = (held, now);
        }
        now.duration_since(self.since) >= PATIENCE
    }
}

/// The result of one check.
enum Step {
    /// This operator is the owner, and has shown it now.
    Claimed,
    /// This operator was the owner when it showed it last.
    NotDue,
    /// Another operator is, with this mark; or it was, and its mark is missing.
    Other(Option<String>),
}

impl From<Option<String>> for Step {
    fn from(other: Option<String>) -> Self {
        other.map_or(Self::Claimed, |other| Self::Other(Some(other)))
    }
}

impl Ownership {
    /// Finds out who owns the data, claims them if they have no owner, and shows that this operator
    /// lives if it is the owner.
    ///
    /// # Errors
    /// If Redis does not answer. It is not known then who owns the data.
    pub async fn check(
        &mut self,
        runtime: &Runtime,
        store: &RedisStore,
    ) -> Result<Owner, StoreError> {
        let owner = &runtime.owner;
        let Some(mark) = owner.mark() else { return Ok(Owner::Another) };
        let now = Instant::now();
        let step = match &mut self.phase {
            Phase::Unknown => claim(owner, store, &mark).await?,
            Phase::Owned(renewed) if now.duration_since(*renewed) < RENEWAL => Step::NotDue,
            Phase::Owned(_) => renew(owner, store, &mark).await,
            Phase::Waiting(observation) => match store.owner(owner.name()).await {
                Ok(held) => wait(owner, store, &mark, held, observation, now).await?,
                Err(error) => {
                    // The owner may not reach Redis either.
                    observation.since = now;
                    return Err(error);
                }
            },
        };
        match step {
            Step::NotDue => Ok(Owner::This),
            Step::Claimed => {
                if !matches!(self.phase, Phase::Owned(_)) {
                    tracing::info!(
                        lineage = mark.lineage(),
                        "this operator owns the data in Redis"
                    );
                    runtime.metrics.show_need(NEED, false);
                    owner.set_owned();
                }
                self.phase = Phase::Owned(now);
                owner.continue_with(mark.next());
                Ok(Owner::This)
            }
            Step::Other(held) => {
                self.report(runtime, held.as_deref(), now);
                match &mut self.phase {
                    Phase::Waiting(_) => {}
                    Phase::Unknown => self.phase = Phase::Waiting(Observation::new(held, now)),
                    Phase::Owned(_) => {
                        self.phase = Phase::Waiting(Observation::new(held, now));
                        owner.lose();
                    }
                }
                Ok(Owner::Another)
            }
        }
    }

    /// Tells the administrator who owns the data.
    fn report(&mut self, runtime: &Runtime, held: Option<&str>, now: Instant) {
        let Some((lineage, _)) = held.and_then(|held| held.split_once(' ')) else { return };
        let is_known = self.reported.as_ref().is_some_and(|(reported, at)| {
            reported == lineage && now.duration_since(*at) < REMINDER
        });
        if is_known {
            return;
        }
        self.reported = Some((lineage.to_owned(), now));
        runtime.metrics.show_need(NEED, true);
        tracing::error!(
            lineage,
            "another operator owns the data in Redis; nothing is written there until it has shown no life for a minute"
        );
        let note = format!(
            "Another operator of this installation, with the lineage {lineage}, owns the data in Redis: nothing is \
             written there until it has shown no life for a minute, or the annotation {} of this Lease names it",
            labels::REPLACE_OWNER_ANNOTATION
        );
        runtime.events.emit(&runtime.owner.lease, Notice::warning("RedisOwnedByAnother", note));
    }
}

/// Claims the data at the beginning.
async fn claim(
    owner: &RedisOwner,
    store: &RedisStore,
    mark: &OwnerMark,
) -> Result<Step, StoreError> {
    match store.claim(owner.name(), mark, None).await {
        Ok(other) => Ok(other.into()),
        Err(error) => {
            // A Redis without memory refuses the mark, and needs its owner to get some back.
            let held = store.owner(owner.name()).await?;
            tracing::debug!(%error, "failed to write the mark of the owner to Redis");
            Ok(if mark.continues(held.as_deref()) { Step::Claimed } else { Step::Other(held) })
        }
    }
}

/// Shows that this operator lives.
async fn renew(owner: &RedisOwner, store: &RedisStore, mark: &OwnerMark) -> Step {
    match store.claim(owner.name(), mark, None).await {
        Ok(other) => other.into(),
        Err(error) => {
            tracing::debug!(%error, "failed to write the mark of the owner to Redis");
            Step::NotDue
        }
    }
}

/// Replaces another owner that shows no life, or that an administrator has named.
async fn wait(
    owner: &RedisOwner,
    store: &RedisStore,
    mark: &OwnerMark,
    held: Option<String>,
    observation: &mut Observation,
    now: Instant,
) -> Result<Step, StoreError> {
    let is_silent = observation.see(held.clone(), now);
    let other = held.as_deref().filter(|_| !mark.continues(held.as_deref()));
    let lineage =
        other.and_then(|other| other.parse().ok()).map(|mark: OwnerMark| mark.lineage().to_owned());
    if !is_silent && !lineage.is_some_and(|lineage| owner.replaces(&lineage)) {
        return Ok(Step::Other(held));
    }
    let Some(other) = other else {
        return Ok(store.claim(owner.name(), mark, None).await?.into());
    };
    // With a lineage of its own, this operator is another one for the former owner too.
    let successor = observation.successor.get_or_insert_with(|| OwnerMark::generate(&mut random()));
    if mark.lineage() != successor.lineage() {
        // The next renewal of the Lease stores it.
        owner.continue_with(successor.clone());
        return Ok(Step::Other(held));
    }
    Ok(store.claim(owner.name(), mark, Some(other)).await?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_silent_if_its_mark_has_not_changed_for_a_minute() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mark = |number: u32| Some(format!("00112233445566aa {number}"));
        let mut observation = Observation::new(mark(1), begin);
        assert!(!observation.see(mark(1), at(59)));
        assert!(!observation.see(mark(2), at(60)), "it lives");
        assert!(!observation.see(None, at(119)), "Redis has lost it, and it may come back");
        assert!(!observation.see(mark(2), at(178)));
        assert!(observation.see(mark(2), at(238)));
    }
}
