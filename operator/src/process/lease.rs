//! Elects one of several replicas as the leader, through a Lease. A replica that loses the
//! leadership notices it before another replica can lead.
//!
//! The protocol is that of client-go. Clocks of machines are not compared: a candidate waits until
//! the Lease has not changed for as long as it is valid. Every write has the version that was read,
//! or that this process wrote last, as its precondition.
//!
//! This is not a library, because `kube-lease-manager` (0.13) compares the holder's clock with its
//! own and takes an expired Lease without a precondition, so that two replicas may believe that
//! they lead. `k8s-controller` (0.15) decides correctly, but one hanging request can take all the
//! time for renewing, it does not name the holder, and it brings a second controller framework.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use rand::rngs::SysRng;
use rand_core::UnwrapErr;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use twofactor_api::labels;
use twofactor_core::owner::OwnerMark;
use twofactor_store::clock::Clock;

use crate::k8s::backoff::jittered;
use crate::k8s::request::{self, ApiError};
pub use crate::state::redis_owner::RedisOwner;

/// Minimum interval between two reads of the Lease by a candidate.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);

/// Maximum duration of a Lease that a candidate respects. No leader of this project uses a longer
/// one, so a Lease with an invalid duration cannot block all replicas.
const LONGEST_DURATION: Duration = Duration::from_mins(1);

/// Settings of the leader election.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Name of this process, such as its pod's. A process with the same name counts as this one
    /// after a restart.
    pub identity: String,
    /// Time for which the Lease is valid after a renewal, in whole seconds.
    pub duration: Duration,
    /// Interval between two renewals.
    pub renew: Duration,
    /// Time without a renewal after which the leader gives up. It is shorter than `duration`, so
    /// that running work can end in the difference.
    pub give_up: Duration,
    /// Interval between two reads by a candidate.
    pub poll: Duration,
    /// Pause of the leader after a failed renewal.
    pub retry: Duration,
    /// Timeout for one request.
    pub request: Duration,
}

impl Settings {
    /// Settings with the default times: valid for 15 s, renewed every 3 s, given up after 10 s,
    /// read every 2 s by candidates.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(15),
            renew: Duration::from_secs(3),
            give_up: Duration::from_secs(10),
            poll: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            request: Duration::from_secs(3),
        }
    }
}

/// Waits until this process leads, or until `stop`. `stop` is checked only between two requests, so
/// that no Lease is left without a holder. Failed requests are repeated. The Lease also holds the
/// mark of `owner`.
pub async fn acquire(
    client: &Client,
    settings: Settings,
    owner: Arc<RedisOwner>,
    clock: Clock,
    stop: &CancellationToken,
) -> Option<Leadership> {
    let api = Api::namespaced(client.clone(), &settings.namespace);
    let holder = LeaseHolder { api, settings, owner, clock };
    let (mut observed, mut logged) = (Observation::default(), String::new());
    loop {
        let asked = Instant::now();
        let (wait, reason) = match holder.try_to_take(&mut observed).await {
            Ok(Attempt::Won(lease)) => return Some(Leadership::new(holder, *lease, asked)),
            Ok(Attempt::Held { by, left }) => {
                let reason = format!("{by} holds the lease");
                (holder.settings.poll.min(left.max(SHORTEST_WAIT)), reason)
            }
            Ok(Attempt::Conflict) => {
                (holder.settings.poll, "another replica was faster".to_owned())
            }
            Err(error) => (holder.settings.poll, holder.explain(&error)),
        };
        if reason != logged {
            tracing::info!(lease = holder.settings.name, "waiting to lead: {reason}");
            logged = reason;
        }
        // The jitter keeps candidates that started together from always asking together.
        stop.run_until_cancelled(sleep(jittered(wait, &mut UnwrapErr(SysRng)))).await?;
    }
}

/// The leadership while it lasts. If dropped, it ends without releasing the Lease.
#[derive(Debug)]
pub struct Leadership {
    holder: Arc<LeaseHolder>,
    lost: CancellationToken,
    released: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Leadership {
    fn new(holder: LeaseHolder, lease: Lease, asked: Instant) -> Self {
        let Settings { name, identity, .. } = &holder.settings;
        tracing::info!(lease = name, identity, "leading");
        let (lost, released) = (CancellationToken::new(), CancellationToken::new());
        let holder = Arc::new(holder);
        let renewal = tokio::spawn({
            let (holder, lost, released) = (holder.clone(), lost.clone(), released.clone());
            async move {
                // A panic counts as a loss too.
                let lost = lost.drop_guard();
                if holder.renew_until_lost(lease, asked, &released).await.is_none() {
                    lost.disarm();
                }
            }
        });
        Self { holder, lost, released, renewal }
    }

    /// Resolves when the leadership is lost. From then on this process must not write as the
    /// leader, and it should exit.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.lost.clone().cancelled_owned()
    }

    /// Releases the Lease, so that another replica can lead at once. Call it after the leader's
    /// work has ended. A failure is logged, and other replicas then wait until the Lease expires.
    pub async fn release(mut self) {
        self.released.cancel();
        // A running renewal ends first, because it would take the Lease back.
        let _ = (&mut self.renewal).await;
        let lease = &self.holder.settings.name;
        if self.lost.is_cancelled() {
            return;
        }
        match self.holder.give_back().await {
            Ok(()) => tracing::info!(lease, "lease released, no longer leading"),
            Err(error) => {
                let error = self.holder.explain(&error);
                tracing::warn!(
                    lease,
                    error,
                    "failed to release the lease: other replicas wait until it expires"
                );
            }
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// The result of an attempt to take or renew the Lease.
enum Attempt {
    /// This process holds the Lease, which now is as given.
    Won(Box<Lease>),
    /// Another process holds the Lease, for that long at least.
    Held { by: String, left: Duration },
    /// Another process has written at the same time.
    Conflict,
}

/// Maps the result of a write. A failed precondition is not an error.
fn attempt(written: Result<Lease, ApiError>) -> Result<Attempt, ApiError> {
    match written {
        Ok(lease) => Ok(Attempt::Won(Box::new(lease))),
        Err(ApiError::AlreadyExists(_) | ApiError::Conflict(_) | ApiError::NotFound(_)) => {
            Ok(Attempt::Conflict)
        }
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct LeaseHolder {
    api: Api<Lease>,
    settings: Settings,
    owner: Arc<RedisOwner>,
    clock: Clock,
}

/// Returns the mark of the owner of Redis in the Lease, or a new one.
fn mark_in(lease: Option<&Lease>) -> OwnerMark {
    let annotations = lease.and_then(|lease| lease.metadata.annotations.as_ref());
    let mark = annotations.and_then(|annotations| annotations.get(labels::OWNER_ANNOTATION));
    let mark = mark.and_then(|mark| mark.parse().ok());
    mark.unwrap_or_else(|| OwnerMark::generate(&mut UnwrapErr(SysRng)))
}

impl LeaseHolder {
    async fn try_to_take(&self, observed: &mut Observation) -> Result<Attempt, ApiError> {
        let found = self.read().await?;
        self.owner.found(mark_in(found.as_ref()));
        let Some(mut lease) = found else { return self.create().await };
        let spec = lease.spec.take().unwrap_or_default();
        match observed.evaluate(&spec, &self.settings, Instant::now()) {
            Decision::Wait { holder, left } => Ok(Attempt::Held { by: holder, left }),
            Decision::Take => self.write(lease, self.next(&spec)).await,
        }
    }

    /// Renews the Lease until the leadership is lost, or returns nothing if it is released.
    async fn renew_until_lost(
        &self,
        lease: Lease,
        mut renewed: Instant,
        released: &CancellationToken,
    ) -> Option<()> {
        let Settings { name, renew, give_up, retry, .. } = &self.settings;
        let mut written = Some(lease);
        let mut due = Instant::now() + *renew;
        loop {
            let end = renewed + *give_up;
            released.run_until_cancelled(sleep_until(due.min(end))).await?;
            let asked = Instant::now();
            // Candidates count from the moment at which they see the change, which is later than
            // the beginning of this request.
            match timeout_at(end, self.renew(&mut written)).await {
                // If this process stood still for too long, even a successful answer is too late.
                _ if asked >= end => {
                    tracing::error!(lease = name, after = ?give_up, "leadership lost: the lease was not renewed in time");
                    return Some(());
                }
                Ok(Ok(true)) => (renewed, due) = (asked, asked + *renew),
                Ok(Ok(false)) => {
                    tracing::error!(
                        lease = name,
                        "leadership lost: another replica holds the lease"
                    );
                    return Some(());
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        lease = name,
                        error = self.explain(&error),
                        "failed to renew the lease"
                    );
                    due = Instant::now() + *retry;
                }
                // The next round reports the loss.
                Err(_) => due = end,
            }
        }
    }

    /// Renews the Lease once and returns whether this process still holds it. `written` is the
    /// Lease as this process wrote it last. It is read only if another client has changed it since,
    /// or if it is not known whether the last write was stored.
    async fn renew(&self, written: &mut Option<Lease>) -> Result<bool, ApiError> {
        // An administrator may have changed another field of the Lease, or deleted it.
        for _ in 0..3 {
            let known = match written.take() {
                Some(lease) => Some(lease),
                None => self.read().await?,
            };
            let attempt = match known {
                Some(mut lease) => {
                    let spec = lease.spec.take().unwrap_or_default();
                    if holder(&spec) != Some(self.settings.identity.as_str()) {
                        return Ok(false);
                    }
                    self.write(lease, self.next(&spec)).await?
                }
                // If the Lease was deleted by hand, the replica that creates it again holds it.
                None => self.create().await?,
            };
            if let Attempt::Won(lease) = attempt {
                *written = Some(*lease);
                return Ok(true);
            }
        }
        Err(ApiError::Conflict("Conflict".to_owned()))
    }

    async fn give_back(&self) -> Result<(), ApiError> {
        let Some(mut lease) = self.read().await? else { return Ok(()) };
        let mut spec = lease.spec.take().unwrap_or_default();
        if holder(&spec) != Some(self.settings.identity.as_str()) {
            return Ok(());
        }
        // Like client-go: without a holder, and valid for one second.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(self.now());
        self.write(lease, spec).await.map(|_| ())
    }

    async fn read(&self) -> Result<Option<Lease>, ApiError> {
        request::optional(self.within(self.api.get(&self.settings.name)).await)
    }

    async fn create(&self) -> Result<Attempt, ApiError> {
        let metadata =
            ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
        let mut lease = Lease { metadata, spec: Some(self.next(&LeaseSpec::default())) };
        let mark = self.put_mark(&mut lease);
        let parameters = PostParams::default();
        self.stored(mark, attempt(self.within(self.api.create(&parameters, &lease)).await))
    }

    /// Writes the Lease, with the version that was read as the precondition.
    async fn write(&self, mut lease: Lease, spec: LeaseSpec) -> Result<Attempt, ApiError> {
        lease.spec = Some(spec);
        let annotations = lease.metadata.annotations.as_ref();
        let replaced = annotations.and_then(|it| it.get(labels::REPLACE_OWNER_ANNOTATION));
        self.owner.replace(replaced.cloned());
        let mark = self.put_mark(&mut lease);
        let parameters = PostParams::default();
        let written = self.api.replace(&self.settings.name, &parameters, &lease);
        self.stored(mark, attempt(self.within(written).await))
    }

    /// Puts the mark of the owner of Redis into the Lease that is about to be written.
    fn put_mark(&self, lease: &mut Lease) -> Option<OwnerMark> {
        let mark = self.owner.to_store()?;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(labels::OWNER_ANNOTATION.to_owned(), mark.to_string());
        Some(mark)
    }

    /// Remembers the mark that was written.
    fn stored(
        &self,
        mark: Option<OwnerMark>,
        written: Result<Attempt, ApiError>,
    ) -> Result<Attempt, ApiError> {
        if let (Some(mark), Ok(Attempt::Won(_))) = (mark, &written) {
            self.owner.stored(mark);
        }
        written
    }

    /// The spec of the Lease after taking or renewing it.
    fn next(&self, before: &LeaseSpec) -> LeaseSpec {
        let ours = holder(before) == Some(self.settings.identity.as_str());
        let transitions = before.lease_transitions.unwrap_or_default();
        let seconds = self.settings.duration.as_secs().max(1);
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: if ours { before.acquire_time.clone() } else { Some(self.now()) },
            renew_time: Some(self.now()),
            lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }

    /// The time for people who read the Lease. No decision uses it.
    fn now(&self) -> MicroTime {
        let millis = i64::try_from(self.clock.now().millis()).unwrap_or(i64::MAX);
        MicroTime(Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    async fn within<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        match timeout(self.settings.request, request).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ApiError::Timeout),
        }
    }

    fn explain(&self, error: &ApiError) -> String {
        match error {
            ApiError::Refused { code: 401 | 403, .. } => format!(
                "{error}: the service account needs get and update of the lease {}, and create, in the namespace {}",
                self.settings.name, self.settings.namespace
            ),
            ApiError::Timeout => {
                format!("the API server does not answer within {:?}", self.settings.request)
            }
            error => error.to_string(),
        }
    }
}

fn holder(spec: &LeaseSpec) -> Option<&str> {
    spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// The last state of the Lease that a candidate has observed, and since when.
#[derive(Debug, Default)]
struct Observation(Option<(LeaseSpec, Instant)>);

#[derive(Debug, PartialEq)]
enum Decision {
    /// The Lease is free or expired, or this process held it before a restart.
    Take,
    /// Another process holds the Lease, for that long at least.
    Wait { holder: String, left: Duration },
}

impl Observation {
    fn evaluate(&mut self, spec: &LeaseSpec, settings: &Settings, now: Instant) -> Decision {
        let Some(holder) = holder(spec).filter(|holder| *holder != settings.identity) else {
            return Decision::Take;
        };
        let since = match &self.0 {
            Some((last, since)) if last == spec => *since,
            _ => {
                self.0 = Some((spec.clone(), now));
                now
            }
        };
        // The duration in the Lease counts, because the holder may have another version than this
        // process.
        let stated = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = stated
            .map_or(settings.duration, Duration::from_secs)
            .min(settings.duration.max(LONGEST_DURATION));
        let left = (since + duration).saturating_duration_since(now);
        if left.is_zero() {
            Decision::Take
        } else {
            Decision::Wait { holder: holder.to_owned(), left }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, seconds: i32, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_candidate_takes_the_lease_if_it_has_not_changed_for_as_long_as_it_is_valid() {
        let (settings, start) = (Settings::new("system", "operator", "b"), Instant::now());
        let mut observed = Observation::default();
        let mut evaluate = |renewed, after: u64| {
            observed.evaluate(
                &spec("a", 15, renewed),
                &settings,
                start + Duration::from_millis(after),
            )
        };
        let wait =
            |millis| Decision::Wait { holder: "a".to_owned(), left: Duration::from_millis(millis) };
        // The holder's clock may be years off.
        assert_eq!(evaluate(7, 0), wait(15_000));
        assert_eq!(evaluate(7, 14_999), wait(1));
        assert_eq!(evaluate(8, 14_999), wait(15_000), "renewed");
        assert_eq!(evaluate(8, 29_998), wait(1));
        assert_eq!(evaluate(8, 29_999), Decision::Take);
    }

    #[test]
    fn a_candidate_takes_a_lease_without_holder_or_with_its_own_name_at_once() {
        let settings = Settings::new("system", "operator", "b");
        for spec in [LeaseSpec::default(), spec("", 15, 7), spec("b", 15, 7)] {
            assert_eq!(
                Observation::default().evaluate(&spec, &settings, Instant::now()),
                Decision::Take
            );
        }
    }

    #[test]
    fn the_duration_in_the_lease_counts_within_bounds() {
        let settings = Settings::new("system", "operator", "b");
        for (seconds, expected) in [(40, 40), (-1, 15), (i32::MAX, 60)] {
            let decision =
                Observation::default().evaluate(&spec("a", seconds, 7), &settings, Instant::now());
            let expected = Duration::from_secs(expected);
            assert_eq!(decision, Decision::Wait { holder: "a".to_owned(), left: expected });
        }
    }

    #[test]
    fn with_the_default_times_a_leader_gives_up_before_another_can_lead() {
        let Settings { duration, renew, give_up, retry, request, .. } =
            Settings::new("system", "operator", "b");
        assert!(renew + 2 * request < give_up && give_up < duration);
        assert!(renew + request + retry + request <= give_up, "one lost answer is borne");
    }
}
