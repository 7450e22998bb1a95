//! One user, from what an administrator wrote to what services can verify. Enters: a user. Leaves:
//! when to look again. It reads as the steps: admit, fetch, apply, publish, report.

pub mod apply;
pub mod failures;
pub mod fetch;
pub mod publish;
pub mod secret;
pub mod seed_decision;
pub mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use thiserror::Error;
use twofactor_api::validate::validate;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::record::{Provenance, UserRecord};
use twofactor_core::user::UserDefinition;
use twofactor_store::publisher::DesiredUser;

use self::apply::{Applied, ApplyError, SeedOutcome};
use self::fetch::FetchError;
use self::publish::{PublishError, Published};
use self::seed_decision::{SeedProblem, UnusableSeed};
use self::status::{Report, StatusError};
use crate::failpoint::{self, Step};
use crate::k8s::backoff::{LONGEST, LONGEST_AWAY, jittered};
use crate::k8s::conditions::{ConditionState, whole_seconds};
use crate::metrics::Outcome;
use crate::state::queue::{self, reference};
use crate::state::realms::{Realm, RealmError};
use crate::state::{Context, random};

/// How soon to look whether a predecessor's Secret has gone.
const SOON: Duration = Duration::from_secs(1);
/// How often to look at Secrets that are not watched: imported ones, and those of somebody else. A
/// watch of their metadata would mean one of every Secret in the cluster, since nothing marks them.
const UNWATCHED: Duration = Duration::from_secs(45);
/// How often to look at a user of whom nothing was heard: nothing should be missed, but it costs
/// little to make sure.
const SAFETY_NET: Duration = Duration::from_hours(2);

/// Why a user is not as they should be. Each step has its own.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// There is no realm.
    #[error(transparent)]
    Realm(#[from] RealmError),
    /// Something could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The Secret could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The record could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] StatusError),
}

impl ReconcileError {
    /// The longest that this user should be left alone.
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
        if temporary { LONGEST_AWAY } else { LONGEST }
    }
}

/// Looks at a user, counts and remembers how that went.
pub async fn reconcile(
    user: Arc<TwoFactorUser>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let reference = queue::reference(&user);
    let begun = Instant::now();
    context.queue.taken(&reference);
    // What was asked for until now is answered by this look, so it has to be one at what is there
    // now.
    let Some(user) = context.users.get(&reference) else { return Ok(Action::await_change()) };
    context.own_writes.begin(&reference);
    failpoint::hit(Step::Started);
    let result = run_steps(&user, &context).await;
    context.queue.done(&reference);
    if context.own_writes.end(&reference) {
        context.queue.push(reference.clone());
    }
    let outcome = match &result {
        Ok((_, Waiting::Done)) => Outcome::Success,
        Ok((_, Waiting::Again)) => Outcome::RequeueAfter,
        Err(_) => Outcome::Error,
    };
    context.metrics.reconciled(outcome, begun.elapsed());
    result.map(|(action, _)| {
        context.backoff.forget(&reference);
        action
    })
}

/// After a failure: when to look again.
pub fn error_policy(user: &TwoFactorUser, error: &ReconcileError, context: &Context) -> Action {
    let reference = queue::reference(user);
    let delay = context.backoff.failed(&reference, error.longest_delay(), &mut random());
    match error {
        // Said once by the guard, not once a user.
        ReconcileError::Publish(PublishError::RedisUnavailable | PublishError::RealmNotReady) => {
            tracing::debug!(user = %reference, %error, retry = ?delay, "not published yet");
        }
        error => {
            tracing::warn!(user = %reference, %error, retry = ?delay, "a user could not be reconciled");
        }
    }
    Action::requeue(delay)
}

/// Whether everything is done, or there is something to wait for.
#[derive(Clone, Copy)]
enum Waiting {
    Done,
    Again,
}

async fn run_steps(
    user: &TwoFactorUser,
    context: &Context,
) -> Result<(Action, Waiting), ReconcileError> {
    let realm = context.realms.get_or_create(&user.namespace().unwrap_or_default()).await?;
    let definition = match admit(user, context, &realm) {
        Ok(definition) => definition,
        Err(report) => {
            write_status(user, context, &report, Vec::new()).await?;
            return Ok(requeue(SAFETY_NET, Waiting::Done));
        }
    };
    let fetched = match fetch::fetch(context, user).await {
        Ok(fetched) => fetched,
        Err(error) => {
            disable(context, &realm, user, &definition).await;
            return Err(error.into());
        }
    };
    if let Some(own) = &fetched.own {
        let version = own.secret.as_ref().and_then(ResourceExt::resource_version);
        context.own_writes.secret_written(&reference(user), version);
    }
    failpoint::hit(Step::Fetched);
    let applied = match apply::apply(context, &realm, user, &definition, fetched).await {
        Ok(applied) => applied,
        Err(error) => {
            disable(context, &realm, user, &definition).await;
            report_rejected_secret(user, context, &definition, &error).await;
            return Err(error.into());
        }
    };
    if matches!(applied.outcome, SeedOutcome::WaitingForStore) {
        let report = report(user, &definition, &applied, &Err(PublishError::RedisUnavailable));
        write_status(user, context, &report, Vec::new()).await?;
        return Err(PublishError::RedisUnavailable.into());
    }
    if applied.seed().is_some() {
        context.own_writes.seeded(&reference(user));
    }
    let uid = user.uid().unwrap_or_default();
    let record = UserRecord {
        definition: definition.clone(),
        seed: applied.seed().cloned(),
        provenance: Some(Provenance::new(&uid, applied.rotated())),
    };
    let fresh = matches!(applied.outcome, SeedOutcome::Seed { fresh: true, .. });
    let reset = failures::request(&realm, user);
    let desired = DesiredUser { record, fresh, reset };
    let published = publish::publish(context, &realm, &uid, desired, applied.newcomer).await;
    if matches!(published, Ok(Published::Withdrawn)) {
        return Ok((Action::await_change(), Waiting::Done));
    }
    let mut report = report(user, &definition, &applied, &published);
    let mut notices = applied.notices.clone();
    if published.is_ok() {
        report.disabled_by_failures = failures::have_disabled(&realm, &definition).await?;
        report.failures_reset = user.annotations().get(labels::RESET_FAILURES_ANNOTATION).cloned();
        notices.extend(failures::notice(user, applied.newcomer));
    } else {
        // Nobody knows better for now.
        report.disabled_by_failures = status::says_disabled_by_failures(user);
    }
    let looking_again = next_look(user, &applied);
    write_status(user, context, &report, notices).await?;
    failpoint::hit(Step::StatusWritten);
    published?;
    Ok(looking_again)
}

/// Disables a user whose Secret is in the way: that must not wait. The published record keeps its
/// seed.
async fn disable(
    context: &Context,
    realm: &Realm,
    user: &TwoFactorUser,
    definition: &UserDefinition,
) {
    if definition.enabled {
        return;
    }
    let pseudonym = realm.publisher.keys().pseudonym(&definition.username);
    let Ok(Some(record)) = realm.publisher.current(pseudonym).await else { return };
    let record = UserRecord { definition: definition.clone(), ..record };
    let uid = user.uid().unwrap_or_default();
    let desired = DesiredUser { record, fresh: false, reset: failures::request(realm, user) };
    if let Err(error) = publish::publish(context, realm, &uid, desired, false).await {
        tracing::debug!(%error, "a user could not be disabled yet");
    }
}

/// Whether the user is one who can be served at all; otherwise what to tell them.
fn admit(
    user: &TwoFactorUser,
    context: &Context,
    realm: &Realm,
) -> Result<UserDefinition, Box<Report>> {
    let refused = |told: ConditionState| {
        Box::new(Report {
            username: Some(user.spec.username.clone().unwrap_or_else(|| user.name_any())),
            secret_name: None,
            rotated: None,
            failures_reset: None,
            disabled_by_failures: false,
            secret: told.clone(),
            published: told,
            enabled: user.spec.enabled,
        })
    };
    let definition = validate(user).map_err(|errors| {
        // What was valid before is not served any longer; the removal is carried out in the
        // background.
        if let Some((username, true)) =
            context.usernames().claim_of(&realm.namespace, &user.name_any())
        {
            realm.schedule_removal(realm.publisher.keys().pseudonym(&username));
            context.removals.notify_one();
        }
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        refused(ConditionState::unmet("Invalid", errors.join("; ")))
    })?;
    let usernames = context.usernames();
    match usernames.owner(&realm.namespace, &definition.username) {
        Some(owner) if Some(&owner.uid) != user.metadata.uid.as_ref() => {
            Err(refused(ConditionState::unmet(
                "Conflict",
                format!(
                    "The username belongs to the older user {}: delete one of the two",
                    owner.name
                ),
            )))
        }
        _ => Ok(definition),
    }
}

/// What to tell of what was done.
fn report(
    user: &TwoFactorUser,
    definition: &UserDefinition,
    applied: &Applied,
    published: &Result<Published, PublishError>,
) -> Report {
    let name = labels::secret_name(&user.name_any());
    let (secret, rotated) = match &applied.outcome {
        SeedOutcome::Seed { rotated, .. } => (
            match &user.spec.secret_ref {
                None => {
                    ConditionState::met("Available", format!("The seed is in the Secret {name}"))
                }
                Some(reference) => ConditionState::met(
                    "Imported",
                    format!(
                        "The seed is imported from the key {} of the Secret {}",
                        reference.key, reference.name
                    ),
                ),
            },
            rotated.clone(),
        ),
        SeedOutcome::Unusable(refusal) => {
            (ConditionState::unmet(reason(refusal), sentence(&refusal.to_string())), None)
        }
        SeedOutcome::WaitingForPredecessor => (
            ConditionState::unmet(
                "WaitingForPredecessor",
                format!("The Secret {name} of an earlier user of this name is about to be deleted"),
            ),
            None,
        ),
        SeedOutcome::WaitingForStore => (
            ConditionState::unmet(
                "WaitingForStore",
                format!(
                    "The Secret {name} is gone; only Redis, which does not answer, can tell whether its seed can be restored"
                ),
            ),
            None,
        ),
    };
    let has_secret = matches!(applied.outcome, SeedOutcome::Seed { .. });
    Report {
        username: Some(definition.username.to_string()),
        secret_name: has_secret.then_some(name),
        rotated,
        failures_reset: None,
        disabled_by_failures: false,
        secret,
        published: match published {
            Ok(_) => ConditionState::met("Published", "Sidecars can read the user's record"),
            Err(PublishError::RealmNotReady) => {
                ConditionState::unmet("StoreFilling", "Redis is being filled")
            }
            Err(_) => ConditionState::unmet(
                "StoreUnavailable",
                "Redis does not answer: the record will be published when it does",
            ),
        },
        enabled: definition.enabled,
    }
}

const fn reason(refusal: &SeedProblem) -> &'static str {
    match refusal {
        SeedProblem::Import(UnusableSeed::NoSecret { .. }) => "SecretRefNotFound",
        SeedProblem::Import(UnusableSeed::NoKey { .. }) => "SecretRefKeyMissing",
        SeedProblem::Import(UnusableSeed::NotASeed { .. }) => "SecretRefInvalid",
        SeedProblem::Invalid(_) => "SecretInvalid",
        SeedProblem::NotOurs { .. } => "SecretNotOurs",
        SeedProblem::Lost { .. } => "SecretLost",
    }
}

/// With a capital letter in front.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// When to look at the user again, although nothing was heard of them.
fn next_look(user: &TwoFactorUser, applied: &Applied) -> (Action, Waiting) {
    match &applied.outcome {
        SeedOutcome::WaitingForPredecessor => requeue(SOON, Waiting::Again),
        SeedOutcome::Unusable(SeedProblem::NotOurs { .. }) => requeue(UNWATCHED, Waiting::Again),
        _ if user.spec.secret_ref.is_some() => requeue(UNWATCHED, Waiting::Again),
        _ => requeue(SAFETY_NET, Waiting::Done),
    }
}

fn requeue(after: Duration, waiting: Waiting) -> (Action, Waiting) {
    (Action::requeue(jittered(after, &mut random())), waiting)
}

/// Writes the status when it says something new, and leaves notices.
async fn write_status(
    user: &TwoFactorUser,
    context: &Context,
    report: &Report,
    notices: Vec<crate::k8s::events::Notice>,
) -> Result<(), StatusError> {
    let new = status::build(user, report, whole_seconds(context.clock.now().millis()));
    let regarding = regarding(user);
    for notice in notices.into_iter().chain(status::notices(user.status.as_ref(), &new)) {
        context.events.emit(&regarding, notice);
    }
    let reference = queue::reference(user);
    if user.status.as_ref() != Some(&new) || !context.own_writes.agrees(&reference, &new) {
        context.own_writes.status_written(&reference, &new);
        status::write(&context.client, user, &new).await?;
    }
    Ok(())
}

/// The API server refuses the Secret, a quota perhaps: that is for the user's owner to know.
/// Whether telling works is not important now.
async fn report_rejected_secret(
    user: &TwoFactorUser,
    context: &Context,
    definition: &UserDefinition,
    error: &ApplyError,
) {
    let ApplyError::Write { source, .. } = error else { return };
    if source.is_temporary() {
        return;
    }
    let told = ConditionState::unmet("SecretRefused", sentence(&error.to_string()));
    let report = Report {
        username: Some(definition.username.to_string()),
        secret_name: None,
        rotated: None,
        failures_reset: None,
        disabled_by_failures: false,
        secret: told.clone(),
        published: told,
        enabled: definition.enabled,
    };
    if let Err(error) = write_status(user, context, &report, Vec::new()).await {
        tracing::debug!(%error, "the status could not be written");
    }
}

fn regarding(user: &TwoFactorUser) -> ObjectReference {
    user.object_ref(&())
}
