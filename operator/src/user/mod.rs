//! Reconciles one `TwoFactorUser`: admits it, reads its Secret, applies the seed, publishes the
//! record, and reports the result in the status.
//!
//! Each step has a file. Only this driver calls them and remembers the operator's own writes.

pub mod admit;
pub mod apply;
pub mod disable;
pub mod failures;
pub mod fetch;
pub mod ownership;
pub mod parking;
pub mod publish;
pub mod report;
pub mod run;
pub mod secret;
pub mod seed_decision;
pub mod status;
pub mod subject;
pub mod unchanged;

use std::time::{Duration, Instant};

use kube::ResourceExt;
use rand_core::Rng;
use thiserror::Error;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::record::{Provenance, UserRecord};
use twofactor_store::publisher::DesiredUser;

use self::admit::admit;
use self::apply::{Applied, ApplyError, SeedOutcome};
use self::disable::disable;
use self::fetch::FetchError;
use self::parking::{Gate, gate, is_reported};
use self::publish::{PublishError, Published};
use self::report::{rejected_secret, report};
use self::seed_decision::SeedProblem;
use self::status::StatusError;
use self::subject::Subject;
use crate::failpoint::{self, Step};
use crate::k8s::backoff::{LONGEST, LONGEST_UNAVAILABLE, jittered};
use crate::metrics::Outcome;
use crate::realm::record;
use crate::state::queue::{Next, Urgency};
use crate::state::realms::RealmError;
use crate::state::user_objects::Summary;
use crate::state::user_ref::UserRef;
use crate::state::{Context, random};

/// Interval between checks whether a predecessor's Secret has been deleted.
const SOON: Duration = Duration::from_secs(1);
/// Interval between reads of Secrets of other owners, which have the name of a user's. They have no
/// label in common, so a watch would have to cover every Secret of the cluster.
const UNWATCHED: Duration = Duration::from_secs(45);
/// Interval between reconciliations of a user without changes, in case the watches missed one.
const SAFETY_NET: Duration = Duration::from_hours(2);
/// Time over which the Secrets are written again that an earlier version or another master key has
/// written, so that a new leader does not write them all at once.
const REWRITES: Duration = Duration::from_mins(30);

/// Why a reconciliation failed, by step.
#[derive(Debug, Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Realm(#[from] RealmError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Status(#[from] StatusError),
}

impl ReconcileError {
    /// The longest delay before the user is reconciled again.
    const fn longest_delay(&self) -> Duration {
        let temporary = match self {
            Self::Realm(RealmError::Api(error)) | Self::Status(StatusError(error)) => {
                error.is_temporary()
            }
            Self::Realm(_) => false,
            Self::Fetch(error) | Self::Apply(ApplyError::Fetch(error)) => {
                error.source.is_temporary()
            }
            Self::Apply(ApplyError::Write { source, .. }) => source.is_temporary(),
            Self::Apply(ApplyError::SecretKeepsChanging(_)) | Self::Publish(_) => true,
        };
        if temporary { LONGEST_UNAVAILABLE } else { LONGEST }
    }
}

/// Reconciles a user that was taken from the queue, counts and remembers the result, and gives the
/// user back to the queue.
pub async fn reconcile(context: &Context, reference: &UserRef) {
    let users = &context.users;
    // The object is read after the user was taken, because this reconciliation answers every
    // request that was queued before.
    let Some(user) = users.objects.get(reference) else {
        return users.queue.finished(reference, Next::Never);
    };
    if context.runtime.refused.is_unlisted(&reference.namespace) {
        // Another user may own the username. All are requeued when all are known.
        return users.queue.finished(reference, Next::Never);
    }
    let begun = Instant::now();
    users.own_writes.begin(reference);
    failpoint::hit(Step::Started);
    let result = run_steps(&user, context).await;
    let outcome = match &result {
        Ok(Next::After(_, Urgency::Now) | Next::Parked(_)) => Outcome::RequeueAfter,
        Ok(_) => Outcome::Success,
        Err(_) => Outcome::Error,
    };
    context.runtime.metrics.reconciled(outcome, begun.elapsed());
    let next = match result {
        Ok(next) => {
            users.backoff.forget(reference);
            next
        }
        Err(error) => after_error(context, reference, &error),
    };
    let has_changed = users.own_writes.end(reference);
    users.queue.finished(reference, next);
    if matches!(next, Next::Parked(_)) {
        // The realm may have become ready in between.
        parking::wake_if_ready(context, &reference.namespace);
    }
    if has_changed {
        users.queue.push(reference.clone());
    }
}

/// Returns when a user whose reconciliation failed is reconciled again.
fn after_error(context: &Context, reference: &UserRef, error: &ReconcileError) -> Next {
    if let ReconcileError::Publish(
        PublishError::RedisUnavailable | PublishError::RealmNotReady | PublishError::OwnedByAnother,
    ) = error
    {
        // The monitor logs this once instead of once for each user.
        tracing::debug!(user = %reference, %error, "user parked until its realm is ready");
        return Next::Parked(None);
    }
    let delay = context.users.backoff.failed(reference, error.longest_delay(), &mut random());
    tracing::warn!(user = %reference, %error, retry = ?delay, "failed to reconcile a user");
    Next::After(delay, Urgency::Now)
}

async fn run_steps(user: &TwoFactorUser, context: &Context) -> Result<Next, ReconcileError> {
    let Context { runtime, users, realms, .. } = context;
    let own_writes = &users.own_writes;
    let realm = realms.registry.get_or_create(&user.namespace().unwrap_or_default()).await?;
    let subject = match admit(runtime, users, &realm, user) {
        Ok(definition) => Subject::new(user, &realm, definition),
        Err(report) => {
            status::update(runtime, own_writes, user, &report, Vec::new()).await?;
            return Ok(after(SAFETY_NET, Urgency::Later));
        }
    };
    let (readiness, elapsed) = realm.readiness_since();
    if let Gate::Closed(delay) = gate(readiness, elapsed, is_reported(user)) {
        return Ok(Next::Parked(delay));
    }
    let issuer = subject
        .definition
        .issuer
        .clone()
        .unwrap_or_else(|| record::issuer(realms, &realm.namespace));
    let applied = match unchanged::applied(own_writes, &subject, &issuer).await {
        Some(applied) => applied,
        None => read_and_apply(context, &subject, &issuer).await?,
    };
    if let Some(version) = &applied.secret_version {
        own_writes.secret_written(&subject.reference, Some(version.clone()));
    }
    if matches!(applied.outcome, SeedOutcome::WaitingForStore) {
        let report = report(&subject, &applied, &Err(PublishError::RedisUnavailable));
        status::update(runtime, own_writes, user, &report, Vec::new()).await?;
        return Err(PublishError::RedisUnavailable.into());
    }
    if applied.seed().is_some() {
        own_writes.seeded(&subject.reference);
    }
    let desired = desired(&subject, &applied, &issuer);
    let published =
        publish::publish(runtime, users, &realm, &subject.uid, desired, applied.newcomer).await;
    if matches!(published, Ok(Published::Withdrawn)) {
        return Ok(Next::Never);
    }
    let mut report = report(&subject, &applied, &published);
    let mut notices = applied.notices.clone();
    if published.is_ok() {
        report.disabled_by_failures = failures::have_disabled(&subject).await?;
        let reset = subject.annotation(labels::RESET_FAILURES_ANNOTATION);
        report.failures_reset = reset.map(str::to_owned);
        notices.extend(failures::notice(user, applied.newcomer));
    } else {
        // Redis is unavailable, so the last known value stays.
        report.disabled_by_failures = Summary::of(user).disabled_by_failures;
    }
    let next = next_reconciliation(&applied);
    status::update(runtime, own_writes, user, &report, notices).await?;
    failpoint::hit(Step::StatusWritten);
    published?;
    Ok(next)
}

/// Reads the user's Secret and makes it hold what it should.
async fn read_and_apply(
    context: &Context,
    subject: &Subject<'_>,
    issuer: &str,
) -> Result<Applied, ReconcileError> {
    let Context { runtime, users, .. } = context;
    let known_to_have_seed = users.own_writes.has_seed(&subject.reference);
    let fetched = match fetch::fetch(runtime, &users.imports, subject, known_to_have_seed).await {
        Ok(fetched) => fetched,
        Err(error) => {
            disable(runtime, users, subject).await;
            return Err(error.into());
        }
    };
    if let Some(own) = &fetched.own {
        let version = own.secret.as_ref().and_then(ResourceExt::resource_version);
        users.own_writes.secret_written(&subject.reference, version);
    }
    failpoint::hit(Step::Fetched);
    match apply::apply(runtime, subject, issuer, fetched).await {
        Ok(applied) => Ok(applied),
        Err(error) => {
            disable(runtime, users, subject).await;
            report_rejected_secret(context, subject, &error).await;
            Err(error.into())
        }
    }
}

fn desired(subject: &Subject<'_>, applied: &Applied, issuer: &str) -> DesiredUser {
    // An imported seed has a Secret of its own, whose version is another one.
    let version =
        applied.secret_version.as_ref().filter(|_| subject.user.spec.secret_ref.is_none());
    DesiredUser {
        record: UserRecord {
            definition: subject.definition.clone(),
            seed: applied.seed().cloned(),
            provenance: Some(Provenance::new(&subject.uid, applied.rotated())),
            source: applied.outdated.clone().or_else(|| {
                version.map(|version| unchanged::source(version, issuer, &subject.realm.proofs))
            }),
        },
        fresh: matches!(applied.outcome, SeedOutcome::Seed { fresh: true, .. }),
        reset: failures::request(subject.realm, subject.user),
        disabled: failures::had_disabled(subject.user),
    }
}

/// Reports to the user's owner that the API server rejects the Secret. A failure to do so is only
/// logged, because the reconciliation has failed anyway.
async fn report_rejected_secret(context: &Context, subject: &Subject<'_>, error: &ApplyError) {
    let Some(report) = rejected_secret(subject, error) else { return };
    let Context { runtime, users, .. } = context;
    let updated = status::update(runtime, &users.own_writes, subject.user, &report, Vec::new());
    if let Err(error) = updated.await {
        tracing::debug!(%error, "failed to write the status of a user");
    }
}

/// Returns when the user is reconciled again without a change.
fn next_reconciliation(applied: &Applied) -> Next {
    match &applied.outcome {
        SeedOutcome::WaitingForPredecessor => after(SOON, Urgency::Now),
        SeedOutcome::Unusable(
            SeedProblem::NotOurs { .. } | SeedProblem::NotProven { .. } | SeedProblem::Held { .. },
        ) => after(UNWATCHED, Urgency::Now),
        _ if applied.outdated.is_some() => {
            let share = random().next_u32();
            Next::After(REWRITES.mul_f64(f64::from(share) / f64::from(u32::MAX)), Urgency::Later)
        }
        _ => after(SAFETY_NET, Urgency::Later),
    }
}

fn after(delay: Duration, urgency: Urgency) -> Next {
    Next::After(jittered(delay, &mut random()), urgency)
}
