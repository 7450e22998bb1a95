//! Turns the result of a reconciliation into conditions of the user.

use twofactor_api::labels;

use super::apply::{Applied, ApplyError, SeedOutcome};
use super::publish::{PublishError, Published};
use super::seed_decision::SeedProblem;
use super::status::Report;
use super::subject::Subject;
use crate::k8s::conditions::ConditionState;
use crate::state::realms::OWNED_BY_ANOTHER;

/// Returns the report of a user whose seed was applied and whose record was published or not.
pub fn report(
    subject: &Subject<'_>,
    applied: &Applied,
    published: &Result<Published, PublishError>,
) -> Report {
    let name = &subject.secret_name;
    let has_secret = matches!(applied.outcome, SeedOutcome::Seed { .. });
    Report {
        username: Some(subject.definition.username.to_string()),
        secret_name: has_secret.then(|| name.clone()),
        rotated: applied.rotated().map(str::to_owned),
        failures_reset: None,
        disabled_by_failures: false,
        secret: secret(subject, applied),
        published: match published {
            Ok(_) => ConditionState::met("Published", "Sidecars can read the user's record"),
            Err(PublishError::RealmNotReady) => {
                ConditionState::unmet("StoreFilling", "Redis is being filled")
            }
            Err(PublishError::OwnedByAnother) => {
                ConditionState::unmet("RedisOwnedByAnother", OWNED_BY_ANOTHER)
            }
            Err(PublishError::ClockDiffers) => ConditionState::unmet(
                "ClockDiffers",
                "The clocks of Redis and of the operator differ by more than a minute: the record \
                 will be published when they agree",
            ),
            Err(_) => ConditionState::unmet(
                "StoreUnavailable",
                "Redis does not answer: the record will be published when it does",
            ),
        },
        enabled: subject.definition.enabled,
    }
}

fn secret(subject: &Subject<'_>, applied: &Applied) -> ConditionState {
    let name = &subject.secret_name;
    match &applied.outcome {
        SeedOutcome::Seed { fresh, rotated, .. } => match &subject.user.spec.secret_ref {
            // The seed is as the object asks, so this does not make the user unready.
            Some(reference) if is_refused(subject, rotated.as_deref()) => ConditionState::met(
                "RotationRefused",
                format!(
                    "The seed is imported from the Secret {}, so the annotation {} does not rotate it: write another seed \
                     there, or remove spec.secretRef",
                    reference.name,
                    labels::ROTATE_ANNOTATION
                ),
            ),
            None if applied.adopted || was_adopted(subject) && !fresh => ConditionState::met(
                ADOPTED,
                format!("The seed is in the Secret {name}, which this user has adopted"),
            ),
            None => ConditionState::met("Available", format!("The seed is in the Secret {name}")),
            Some(reference) => ConditionState::met(
                "Imported",
                format!(
                    "The seed is imported from the key {} of the Secret {}",
                    reference.key, reference.name
                ),
            ),
        },
        SeedOutcome::Unusable(problem) => {
            ConditionState::unmet(reason(problem), sentence(&problem.to_string()))
        }
        SeedOutcome::WaitingForPredecessor => ConditionState::unmet(
            "WaitingForPredecessor",
            format!("The Secret {name} of an earlier user of this name is about to be deleted"),
        ),
        SeedOutcome::WaitingForStore => ConditionState::unmet(
            "WaitingForStore",
            format!(
                "The Secret {name} does not exist; whether its seed can be restored is known when \
                 Redis answers"
            ),
        ),
    }
}

/// Whether a rotation is requested that was not carried out.
fn is_refused(subject: &Subject<'_>, rotated: Option<&str>) -> bool {
    let rotate = subject.annotation(labels::ROTATE_ANNOTATION);
    rotate.is_some() && rotate != rotated
}

/// Returns the report of a user whose Secret the API server rejects, because of a quota for
/// example. Returns nothing for a temporary error, which the user's owner cannot fix.
pub fn rejected_secret(subject: &Subject<'_>, error: &ApplyError) -> Option<Report> {
    let ApplyError::Write { source, .. } = error else { return None };
    if source.is_temporary() {
        return None;
    }
    let state = ConditionState::unmet("SecretRefused", sentence(&error.to_string()));
    let definition = &subject.definition;
    Some(Report::refused(definition.username.to_string(), state, definition.enabled))
}

/// The reason of the condition `SecretReady` of a user whose Secret is older than the user.
const ADOPTED: &str = "Adopted";

/// Whether the status says that the Secret was adopted. That stays true until the seed is another.
fn was_adopted(subject: &Subject<'_>) -> bool {
    let conditions = subject.user.status.iter().flat_map(|status| &status.conditions);
    let mut of_secret = conditions.filter(|it| it.type_ == labels::CONDITION_SECRET_READY);
    of_secret.any(|condition| condition.reason == ADOPTED)
}

const fn reason(problem: &SeedProblem) -> &'static str {
    match problem {
        SeedProblem::Import(_) => "ImportRefused",
        SeedProblem::Invalid(_) => "SecretInvalid",
        SeedProblem::NotOurs { .. } => "SecretNotOurs",
        SeedProblem::NotProven { .. } => "SecretNotProven",
        SeedProblem::Held { .. } => "NewSeedsHeld",
        SeedProblem::Lost { .. } => "SecretLost",
    }
}

/// Returns the text with a capital first letter.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
