//! Which of several operators leads. Enters: a name for a Lease, and for this process. Leaves: at
//! some time the leadership, and word of its loss, which comes before anybody else can have it.
//!
//! The protocol is that of client-go. Clocks of machines are not compared: a candidate waits until
//! it has not seen the Lease change for as long as the Lease is good for. Every write has the
//! version that was read as its precondition.
//!
//! Written here, because `kube-lease-manager` (0.13) compares the holder's clock with its own and
//! takes an expired Lease without a precondition, so that two may believe they have it; and
//! `k8s-controller` (0.15), whose judgement is right, lets one request that hangs use up all the
//! time there is for renewing, does not tell who is waited for, and brings a second framework for
//! controllers along.

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
use twofactor_store::clock::Clock;

use crate::k8s::backoff::jittered;
use crate::k8s::request::{self, ApiError};

/// Between two looks, however soon the Lease may be free.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);

/// Longer than any leader of this project promises: a Lease that was spoilt by hand does not keep
/// everybody out.
const LONGEST_DURATION: Duration = Duration::from_mins(1);

/// How leadership is agreed on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the Lease is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The name of this process, such as its pod's. Whoever has the same name is taken for the
    /// same, restarted.
    pub identity: String,
    /// How long the Lease is good for after it was renewed, in whole seconds.
    pub duration: Duration,
    /// How often it is renewed.
    pub renew: Duration,
    /// After how long without a renewal the leader gives up. Shorter than `duration`: the
    /// difference is what its work under way may take to end.
    pub give_up: Duration,
    /// How often others look at it.
    pub poll: Duration,
    /// How long one request may take.
    pub request: Duration,
}

impl Settings {
    /// The usual times: good for 15 s, renewed every 3 s, given up after 10 s, looked at every
    /// second.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(15),
            renew: Duration::from_secs(3),
            give_up: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            request: Duration::from_secs(3),
        }
    }
}

/// Waits until this process leads, or until `stop`, which is looked at between two requests: a
/// Lease is not left behind for nobody. An API server that does not answer, or refuses, is asked
/// again.
pub async fn acquire(
    client: &Client,
    settings: Settings,
    clock: Clock,
    stop: &CancellationToken,
) -> Option<Held> {
    let keeper =
        Keeper { api: Api::namespaced(client.clone(), &settings.namespace), settings, clock };
    let (mut observed, mut told) = (Observation::default(), String::new());
    loop {
        let asked = Instant::now();
        let (wait, news) = match keeper.try_to_take(&mut observed).await {
            Ok(Taken::Ours) => return Some(Held::new(keeper, asked)),
            Ok(Taken::Held { holder, left }) => {
                let news = format!("{holder} holds the lease");
                (keeper.settings.poll.min(left.max(SHORTEST_WAIT)), news)
            }
            Ok(Taken::TooLate) => (keeper.settings.poll, "somebody else was quicker".to_owned()),
            Err(error) => (keeper.settings.poll, keeper.explain(&error)),
        };
        if news != told {
            tracing::info!(lease = keeper.settings.name, "waiting to lead: {news}");
            told = news;
        }
        // Candidates that began together do not always ask together.
        stop.run_until_cancelled(sleep(jittered(wait, &mut UnwrapErr(SysRng)))).await?;
    }
}

/// The leadership, for as long as it lasts. When dropped, it ends without a word to others.
#[derive(Debug)]
pub struct Held {
    keeper: Arc<Keeper>,
    lost: CancellationToken,
    released: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Held {
    fn new(keeper: Keeper, asked: Instant) -> Self {
        let Settings { name, identity, .. } = &keeper.settings;
        tracing::info!(lease = name, identity, "leading");
        let (lost, released) = (CancellationToken::new(), CancellationToken::new());
        let keeper = Arc::new(keeper);
        let renewal = tokio::spawn({
            let (keeper, lost, released) = (keeper.clone(), lost.clone(), released.clone());
            async move {
                // A panic is a loss, too.
                let lost = lost.drop_guard();
                if keeper.renew_until_lost(asked, &released).await.is_none() {
                    lost.disarm();
                }
            }
        });
        Self { keeper, lost, released, renewal }
    }

    /// Resolves when the leadership is lost: from then on, nothing may be written as its holder.
    /// The process should end.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.lost.clone().cancelled_owned()
    }

    /// Lets somebody else lead at once. To be called when the leader's work has ended. A failure is
    /// logged; then others wait until the Lease is no longer good.
    pub async fn release(mut self) {
        self.released.cancel();
        // A renewal under way ends first: it would take the Lease back.
        let _ = (&mut self.renewal).await;
        let lease = &self.keeper.settings.name;
        if self.lost.is_cancelled() {
            return;
        }
        match self.keeper.give_back().await {
            Ok(()) => tracing::info!(lease, "no longer leading: the lease is released"),
            Err(error) => {
                let error = self.keeper.explain(&error);
                tracing::warn!(
                    lease,
                    error,
                    "the lease is not released: others wait until it is over"
                );
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// What became of an attempt.
enum Taken {
    /// This process has it.
    Ours,
    /// Somebody else has it, for that long at least.
    Held { holder: String, left: Duration },
    /// Somebody else wrote meanwhile.
    TooLate,
}

/// A write with a precondition that does not hold is no failure.
fn taken(written: Result<Lease, ApiError>) -> Result<Taken, ApiError> {
    match written {
        Ok(_) => Ok(Taken::Ours),
        Err(ApiError::AlreadyExists(_) | ApiError::Conflict(_) | ApiError::NotFound(_)) => {
            Ok(Taken::TooLate)
        }
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct Keeper {
    api: Api<Lease>,
    settings: Settings,
    clock: Clock,
}

impl Keeper {
    async fn try_to_take(&self, observed: &mut Observation) -> Result<Taken, ApiError> {
        let Some(mut lease) = self.read().await? else { return self.create().await };
        let spec = lease.spec.take().unwrap_or_default();
        match observed.judge(&spec, &self.settings, Instant::now()) {
            Judgement::Wait { holder, left } => Ok(Taken::Held { holder, left }),
            Judgement::Take => self.write(lease, self.next(&spec)).await,
        }
    }

    /// Returns when the leadership is lost, or nothing when it is to be released.
    async fn renew_until_lost(
        &self,
        mut renewed: Instant,
        released: &CancellationToken,
    ) -> Option<()> {
        let Settings { name, renew, give_up, poll, .. } = &self.settings;
        let mut due = Instant::now() + *renew;
        loop {
            let end = renewed + *give_up;
            released.run_until_cancelled(sleep_until(due.min(end))).await?;
            let asked = Instant::now();
            // Others count from when they see the change, which is later than the beginning of the
            // request that made it.
            match timeout_at(end, self.renew()).await {
                // An answer that was ready at once comes first, also when this process stood still
                // until too late.
                _ if asked >= end => {
                    tracing::error!(lease = name, after = ?give_up, "no longer leading: the lease is not renewed");
                    return Some(());
                }
                Ok(Ok(true)) => (renewed, due) = (asked, asked + *renew),
                Ok(Ok(false)) => {
                    tracing::error!(
                        lease = name,
                        "no longer leading: somebody else holds the lease"
                    );
                    return Some(());
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        lease = name,
                        error = self.explain(&error),
                        "cannot renew the lease"
                    );
                    due = Instant::now() + *poll;
                }
                // The next round notices.
                Err(_) => due = end,
            }
        }
    }

    /// Whether this process still has it.
    async fn renew(&self) -> Result<bool, ApiError> {
        // A second time when somebody has changed something else about it.
        for _ in 0..2 {
            let written = match self.read().await? {
                Some(mut lease) => {
                    let spec = lease.spec.take().unwrap_or_default();
                    if holder(&spec) != Some(self.settings.identity.as_str()) {
                        return Ok(false);
                    }
                    self.write(lease, self.next(&spec)).await?
                }
                // Removed by hand: whoever makes it again has it.
                None => self.create().await?,
            };
            if matches!(written, Taken::Ours) {
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
        // As client-go does: empty, and over in a second.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(self.now());
        self.write(lease, spec).await.map(|_| ())
    }

    async fn read(&self) -> Result<Option<Lease>, ApiError> {
        request::optional(self.within(self.api.get(&self.settings.name)).await)
    }

    async fn create(&self) -> Result<Taken, ApiError> {
        let metadata =
            ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(self.next(&LeaseSpec::default())) };
        taken(self.within(self.api.create(&PostParams::default(), &lease)).await)
    }

    /// With the version that was read as its precondition.
    async fn write(&self, mut lease: Lease, spec: LeaseSpec) -> Result<Taken, ApiError> {
        lease.spec = Some(spec);
        taken(
            self.within(self.api.replace(&self.settings.name, &PostParams::default(), &lease))
                .await,
        )
    }

    /// The Lease, taken or renewed.
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

    /// For people to read; nobody decides by it.
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

/// What a candidate has seen of the Lease, and since when.
#[derive(Debug, Default)]
struct Observation(Option<(LeaseSpec, Instant)>);

#[derive(Debug, PartialEq)]
enum Judgement {
    /// Nobody has it, or nobody any more, or this process had it before a restart.
    Take,
    /// Somebody has it, for that long at least.
    Wait { holder: String, left: Duration },
}

impl Observation {
    fn judge(&mut self, spec: &LeaseSpec, settings: &Settings, now: Instant) -> Judgement {
        let Some(holder) = holder(spec).filter(|holder| *holder != settings.identity) else {
            return Judgement::Take;
        };
        let since = match &self.0 {
            Some((last, since)) if last == spec => *since,
            _ => {
                self.0 = Some((spec.clone(), now));
                now
            }
        };
        // What the holder promised counts, which may be of another version than this process.
        let promised = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = promised
            .map_or(settings.duration, Duration::from_secs)
            .min(settings.duration.max(LONGEST_DURATION));
        let left = (since + duration).saturating_duration_since(now);
        if left.is_zero() {
            Judgement::Take
        } else {
            Judgement::Wait { holder: holder.to_owned(), left }
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
    fn a_lease_is_taken_when_it_has_not_been_seen_to_change_for_as_long_as_it_is_good_for() {
        let (settings, start) = (Settings::new("system", "operator", "b"), Instant::now());
        let mut observed = Observation::default();
        let mut judge = |renewed, after: u64| {
            observed.judge(&spec("a", 15, renewed), &settings, start + Duration::from_millis(after))
        };
        let wait = |millis| Judgement::Wait {
            holder: "a".to_owned(),
            left: Duration::from_millis(millis),
        };
        // The holder's clock may be years off.
        assert_eq!(judge(7, 0), wait(15_000));
        assert_eq!(judge(7, 14_999), wait(1));
        assert_eq!(judge(8, 14_999), wait(15_000), "renewed");
        assert_eq!(judge(8, 29_998), wait(1));
        assert_eq!(judge(8, 29_999), Judgement::Take);
    }

    #[test]
    fn a_lease_of_nobody_or_of_ones_own_name_is_taken_at_once() {
        let settings = Settings::new("system", "operator", "b");
        for spec in [LeaseSpec::default(), spec("", 15, 7), spec("b", 15, 7)] {
            assert_eq!(
                Observation::default().judge(&spec, &settings, Instant::now()),
                Judgement::Take
            );
        }
    }

    #[test]
    fn the_time_that_the_holder_promised_counts_within_bounds() {
        let settings = Settings::new("system", "operator", "b");
        for (seconds, expected) in [(40, 40), (-1, 15), (i32::MAX, 60)] {
            let judged =
                Observation::default().judge(&spec("a", seconds, 7), &settings, Instant::now());
            let expected = Duration::from_secs(expected);
            assert_eq!(judged, Judgement::Wait { holder: "a".to_owned(), left: expected });
        }
    }

    #[test]
    fn the_usual_times_leave_room_between_giving_up_and_the_next_leader() {
        let Settings { duration, renew, give_up, request, .. } =
            Settings::new("system", "operator", "b");
        assert!(renew + 2 * request < give_up && give_up < duration);
    }
}
