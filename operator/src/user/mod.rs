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

use self::apply::{Applied, ApplyError, Outcome as Seeding};
use self::fetch::FetchError;
use self::publish::{PublishError, Published};
use self::seed_decision::{Refusal, Unusable};
use self::status::{Report, StatusError, Told};
use crate::failpoint::{self, Step};
use crate::k8s::backoff::{LONGEST, LONGEST_AWAY, jittered};
use crate::metrics::Outcome;
use crate::state::Context;
use crate::state::realms::{Realm, RealmError};

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
            Self::Apply(ApplyError::Unsteady(_)) | Self::Publish(_) => true,
        };
        if temporary { LONGEST_AWAY } else { LONGEST }
    }
}

/// Looks at a user, counts and remembers how that went.
///
/// # Errors
/// As each step.
pub async fn reconcile(
    user: Arc<TwoFactorUser>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let reference = context.reference(&user);
    let begun = Instant::now();
    context.queue.taken(&reference);
    // What was asked for until now is answered by this look, so it has to be one at what is there
    // now.
    let Some(user) = context.users.get(&reference) else { return Ok(Action::await_change()) };
    context.ledger.begin(&reference);
    failpoint::point(Step::Started);
    let result = pass(&user, &context).await;
    context.queue.done(&reference);
    if context.ledger.end(&reference) {
        context.queue.push(reference.clone());
    }
    let outcome = match &result {
        Ok((_, Waiting::Settled)) => Outcome::Success,
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
#[must_use]
pub fn failed(user: &TwoFactorUser, error: &ReconcileError, context: &Context) -> Action {
    let reference = context.reference(user);
    let delay = context.backoff.failed(&reference, error.longest_delay(), &mut context.random());
    match error {
        // Said once by the guard, not once a user.
        ReconcileError::Publish(PublishError::Away | PublishError::Filling) => {
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
    Settled,
    Again,
}

async fn pass(
    user: &TwoFactorUser,
    context: &Context,
) -> Result<(Action, Waiting), ReconcileError> {
    let realm = context.realms.of(&user.namespace().unwrap_or_default()).await?;
    let definition = match admit(user, context, &realm) {
        Ok(definition) => definition,
        Err(report) => {
            tell(user, context, &report, Vec::new()).await?;
            return Ok(again(context, SAFETY_NET, Waiting::Settled));
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
        context.ledger.secret_written(&context.reference(user), version);
    }
    failpoint::point(Step::Fetched);
    let applied = match apply::apply(context, &realm, user, &definition, fetched).await {
        Ok(applied) => applied,
        Err(error) => {
            disable(context, &realm, user, &definition).await;
            tell_refused(user, context, &definition, &error).await;
            return Err(error.into());
        }
    };
    if matches!(applied.outcome, Seeding::Store) {
        let report = report(user, &definition, &applied, &Err(PublishError::Away));
        tell(user, context, &report, Vec::new()).await?;
        return Err(PublishError::Away.into());
    }
    if applied.seed().is_some() {
        context.ledger.seeded(&context.reference(user));
    }
    let record = UserRecord {
        definition: definition.clone(),
        seed: applied.seed().cloned(),
        provenance: Some(provenance(user, applied.rotated())),
    };
    let fresh = matches!(applied.outcome, Seeding::Seed { fresh: true, .. });
    let uid = user.uid().unwrap_or_default();
    let reset = failures::request(&realm, user);
    let desired = DesiredUser { record, fresh, reset };
    let published = publish::publish(context, &realm, &uid, desired, applied.newcomer).await;
    if matches!(published, Ok(Published::Gone)) {
        return Ok((Action::await_change(), Waiting::Settled));
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
    let looking_again = next_look(user, context, &applied);
    tell(user, context, &report, notices).await?;
    failpoint::point(Step::StatusWritten);
    published?;
    Ok(looking_again)
}

/// Characters of a request for a new seed that tell it from others: an annotation may be as long as
/// a book, a record not.
const ROTATION_CHARACTERS: usize = 128;

/// Whose seed it is that a record holds.
#[must_use]
pub fn provenance(user: &TwoFactorUser, rotation: Option<&str>) -> Provenance {
    let rotation = rotation.map(|rotation| rotation.chars().take(ROTATION_CHARACTERS).collect());
    Provenance { owner: user.uid().unwrap_or_default(), rotation }
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
    let turned_away = |told: Told| {
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
        if let Some((username, true)) = context.index().claim_of(&realm.namespace, &user.name_any())
        {
            realm.vacate(realm.publisher.keys().pseudonym(&username));
            context.removals.notify_one();
        }
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        turned_away(Told::no("Invalid", errors.join("; ")))
    })?;
    let index = context.index();
    match index.owner(&realm.namespace, &definition.username) {
        Some(owner) if Some(&owner.uid) != user.metadata.uid.as_ref() => {
            Err(turned_away(Told::no(
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
        Seeding::Seed { rotated, .. } => (
            match &user.spec.secret_ref {
                None => Told::yes("Available", format!("The seed is in the Secret {name}")),
                Some(reference) => Told::yes(
                    "Imported",
                    format!(
                        "The seed is imported from the key {} of the Secret {}",
                        reference.key, reference.name
                    ),
                ),
            },
            rotated.clone(),
        ),
        Seeding::Refused(refusal) => {
            (Told::no(reason(refusal), sentence(&refusal.to_string())), None)
        }
        Seeding::Predecessor => (
            Told::no(
                "WaitingForPredecessor",
                format!("The Secret {name} of an earlier user of this name is about to be deleted"),
            ),
            None,
        ),
        Seeding::Store => (
            Told::no(
                "WaitingForStore",
                format!(
                    "The Secret {name} is gone; only Redis, which does not answer, can tell whether its seed can be restored"
                ),
            ),
            None,
        ),
    };
    let has_secret = matches!(applied.outcome, Seeding::Seed { .. });
    Report {
        username: Some(definition.username.to_string()),
        secret_name: has_secret.then_some(name),
        rotated,
        failures_reset: None,
        disabled_by_failures: false,
        secret,
        published: match published {
            Ok(_) => Told::yes("Published", "Sidecars can read the user's record"),
            Err(PublishError::Filling) => Told::no("StoreFilling", "Redis is being filled"),
            Err(_) => Told::no(
                "StoreUnavailable",
                "Redis does not answer: the record will be published when it does",
            ),
        },
        enabled: definition.enabled,
    }
}

const fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Import(Unusable::NoSecret { .. }) => "SecretRefNotFound",
        Refusal::Import(Unusable::NoKey { .. }) => "SecretRefKeyMissing",
        Refusal::Import(Unusable::NotASeed { .. }) => "SecretRefInvalid",
        Refusal::Invalid(_) => "SecretInvalid",
        Refusal::NotOurs { .. } => "SecretNotOurs",
        Refusal::Lost { .. } => "SecretLost",
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
fn next_look(user: &TwoFactorUser, context: &Context, applied: &Applied) -> (Action, Waiting) {
    match &applied.outcome {
        Seeding::Predecessor => again(context, SOON, Waiting::Again),
        Seeding::Refused(Refusal::NotOurs { .. }) => again(context, UNWATCHED, Waiting::Again),
        _ if user.spec.secret_ref.is_some() => again(context, UNWATCHED, Waiting::Again),
        _ => again(context, SAFETY_NET, Waiting::Settled),
    }
}

fn again(context: &Context, after: Duration, waiting: Waiting) -> (Action, Waiting) {
    (Action::requeue(jittered(after, &mut context.random())), waiting)
}

/// Writes the status when it says something new, and leaves notices.
async fn tell(
    user: &TwoFactorUser,
    context: &Context,
    report: &Report,
    notices: Vec<crate::k8s::events::Notice>,
) -> Result<(), StatusError> {
    let new = status::build(user, report, status::whole_seconds(context.clock.now().millis()));
    let regarding = regarding(user);
    for notice in notices.into_iter().chain(status::notices(user.status.as_ref(), &new)) {
        context.events.tell(&regarding, notice);
    }
    let reference = context.reference(user);
    if user.status.as_ref() != Some(&new) || !context.ledger.agrees(&reference, &new) {
        context.ledger.status_written(&reference, &new);
        status::write(&context.client, user, &new).await?;
    }
    Ok(())
}

/// The API server refuses the Secret, a quota perhaps: that is for the user's owner to know.
/// Whether telling works is not important now.
async fn tell_refused(
    user: &TwoFactorUser,
    context: &Context,
    definition: &UserDefinition,
    error: &ApplyError,
) {
    let ApplyError::Write { source, .. } = error else { return };
    if source.is_temporary() {
        return;
    }
    let told = Told::no("SecretRefused", sentence(&error.to_string()));
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
    if let Err(error) = tell(user, context, &report, Vec::new()).await {
        tracing::debug!(%error, "the status could not be written");
    }
}

fn regarding(user: &TwoFactorUser) -> ObjectReference {
    user.object_ref(&())
}
