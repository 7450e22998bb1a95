//! Builds the user's status from the report of a reconciliation, and writes it only if it differs.
//! A reconciliation that changes nothing leaves the status unchanged.

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use thiserror::Error;
use twofactor_api::user::TwoFactorUserStatus;
use twofactor_api::{TwoFactorUser, labels};

use crate::k8s::conditions::{ConditionState, condition, whole_seconds};
use crate::k8s::events::Notice;
use crate::k8s::request::{self, ApiError};
use crate::state::Runtime;
use crate::state::own_writes::OwnWrites;
use crate::state::user_objects::DISABLED_BY_FAILURES;
use crate::state::user_ref;

/// Why the status was not written.
#[derive(Debug, Error)]
#[error("cannot write the status: {0}")]
pub struct StatusError(#[from] pub ApiError);

/// The result of a reconciliation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The username that services verify, if it is valid.
    pub username: Option<String>,
    /// The user's Secret, if it is known to exist.
    pub secret_name: Option<String>,
    /// The last rotation that was carried out, if there is a new one.
    pub rotated: Option<String>,
    /// The last reset of failures that was carried out, if there is a new one.
    pub failures_reset: Option<String>,
    /// Whether failures have disabled the user.
    pub disabled_by_failures: bool,
    /// The condition `SecretReady`.
    pub secret: ConditionState,
    /// The condition `Published`.
    pub published: ConditionState,
    /// Whether the user is enabled.
    pub enabled: bool,
}

impl Report {
    /// Reports that the user is not served, with one state for both the Secret and the record.
    pub fn refused(username: String, state: ConditionState, enabled: bool) -> Self {
        Self {
            username: Some(username),
            secret_name: None,
            rotated: None,
            failures_reset: None,
            disabled_by_failures: false,
            secret: state.clone(),
            published: state,
            enabled,
        }
    }
}

/// Writes the status if it differs from the current one, and emits Events.
pub async fn update(
    runtime: &Runtime,
    own_writes: &OwnWrites,
    user: &TwoFactorUser,
    report: &Report,
    notices: Vec<Notice>,
) -> Result<(), StatusError> {
    let new = build(user, report, whole_seconds(runtime.clock.now().millis()));
    let regarding = user.object_ref(&());
    for notice in notices.into_iter().chain(self::notices(user.status.as_ref(), &new)) {
        runtime.events.emit(&regarding, notice);
    }
    let reference = user_ref::reference(user);
    if user.status.as_ref() != Some(&new) || !own_writes.agrees(&reference, &new) {
        own_writes.status_written(&reference, &new);
        write(&runtime.client, user, &new).await?;
    }
    Ok(())
}

/// Builds the status from the report and the previous status.
pub fn build(user: &TwoFactorUser, report: &Report, now: Timestamp) -> TwoFactorUserStatus {
    let old = user.status.clone().unwrap_or_default();
    // What is not published is not known in Redis.
    let disabled_by_failures = if report.published.is_met {
        report.disabled_by_failures
    } else {
        old.disabled_by_failures
    };
    let enabled = enabled(report.enabled, disabled_by_failures);
    let conditions = [
        (labels::CONDITION_READY, ready(report, &enabled)),
        (labels::CONDITION_ENABLED, enabled),
        (labels::CONDITION_SECRET_READY, report.secret.clone()),
        (labels::CONDITION_PUBLISHED, report.published.clone()),
    ];
    let generation = user.metadata.generation;
    TwoFactorUserStatus {
        observed_generation: generation,
        conditions: conditions
            .into_iter()
            .map(|(kind, state)| condition(&old.conditions, kind, state, generation, now))
            .collect(),
        // Facts about the past are kept.
        secret_name: report.secret_name.clone().or(old.secret_name),
        username: report.username.clone(),
        rotated: report.rotated.clone().or(old.rotated),
        failures_reset: report.failures_reset.clone().or(old.failures_reset),
        disabled_by_failures,
    }
}

fn enabled(by_object: bool, disabled_by_failures: bool) -> ConditionState {
    if !by_object {
        ConditionState::unmet("Disabled", "The user is disabled (spec.enabled is false)")
    } else if disabled_by_failures {
        ConditionState::unmet(
            DISABLED_BY_FAILURES,
            format!(
                "A hundred failed attempts in a row have disabled the user: find the cause, and then enable the user with a \
                 new value of the annotation {}",
                labels::RESET_FAILURES_ANNOTATION
            ),
        )
    } else {
        ConditionState::met("Enabled", "The user is enabled")
    }
}

/// Summarizes the other conditions. A disabled user is ready, and the reason says that services
/// cannot verify it: otherwise every attacker with a hundred attempts would stop the deployments
/// that wait for the objects of a repository.
fn ready(report: &Report, enabled: &ConditionState) -> ConditionState {
    let first_unmet = [&report.secret, &report.published].into_iter().find(|state| !state.is_met);
    match first_unmet {
        Some(unmet) => unmet.clone(),
        None if !enabled.is_met => ConditionState { is_met: true, ..enabled.clone() },
        None => ConditionState::met("Ready", "Services can verify the user"),
    }
}

/// Returns an Event for each condition that has changed.
pub fn notices(old: Option<&TwoFactorUserStatus>, new: &TwoFactorUserStatus) -> Vec<Notice> {
    let before = |kind: &str| {
        old.and_then(|old| old.conditions.iter().find(|condition| condition.type_ == kind))
            .map(|condition| (condition.status.as_str(), condition.reason.as_str()))
    };
    let mut notices: Vec<Notice> = Vec::new();
    for condition in &new.conditions {
        let now = (condition.status.as_str(), condition.reason.as_str());
        let Some(known) = KNOWN_REASONS.iter().find(|known| **known == condition.reason) else {
            continue;
        };
        let is_listed = notices.iter().any(|notice| notice.reason == *known);
        if before(&condition.type_) != Some(now) && !is_listed {
            notices.push(Notice {
                warning: !["Disabled", "Published"].contains(known),
                reason: known,
                note: condition.message.clone(),
            });
        }
    }
    notices
}

/// Reasons that emit an Event when they occur.
const KNOWN_REASONS: [&str; 17] = [
    "ClockDiffers",
    "Conflict",
    "Disabled",
    DISABLED_BY_FAILURES,
    "ImportRefused",
    "Invalid",
    "NewSeedsHeld",
    "Published",
    "RedisOwnedByAnother",
    "RotationRefused",
    "SecretInvalid",
    "SecretLost",
    "SecretNotOurs",
    "SecretNotProven",
    "SecretRefused",
    "StoreUnavailable",
    "WaitingForPredecessor",
];

/// Writes the status. It applies only to this object, and not to a later one of the same name. A
/// deleted user is not an error.
async fn write(
    client: &Client,
    user: &TwoFactorUser,
    status: &TwoFactorUserStatus,
) -> Result<(), StatusError> {
    let users =
        Api::<TwoFactorUser>::namespaced(client.clone(), &user.namespace().unwrap_or_default());
    let mut body = json!({ "status": status, "metadata": { "uid": user.uid() } });
    // A merge patch keeps fields that it does not name, so absent fields are set to null.
    for (field, absent) in [
        ("username", status.username.is_none()),
        ("secretName", status.secret_name.is_none()),
        ("rotated", status.rotated.is_none()),
        ("failuresReset", status.failures_reset.is_none()),
        ("disabledByFailures", !status.disabled_by_failures),
    ] {
        if absent {
            body["status"][field] = serde_json::Value::Null;
        }
    }
    let (name, parameters, patch) = (user.name_any(), PatchParams::default(), Patch::Merge(&body));
    request::optional(request::within(users.patch_status(&name, &parameters, &patch)).await)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            username: Some("alice".to_owned()),
            secret_name: Some("alice-totp".to_owned()),
            rotated: None,
            failures_reset: None,
            disabled_by_failures: false,
            secret: ConditionState::met("Available", "fine"),
            published: ConditionState::met("Published", "fine"),
            enabled: true,
        }
    }

    fn user(status: Option<TwoFactorUserStatus>) -> TwoFactorUser {
        let mut user =
            TwoFactorUser::new("alice", twofactor_api::user::TwoFactorUserSpec::default());
        user.metadata.generation = Some(3);
        user.status = status;
        user
    }

    fn ready_of(status: &TwoFactorUserStatus) -> (&str, &str) {
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        (&ready.status, &ready.reason)
    }

    #[test]
    fn the_status_is_unchanged_if_the_report_is_unchanged() {
        let first = build(&user(None), &report(), whole_seconds(1_000_000));
        let second = build(&user(Some(first.clone())), &report(), whole_seconds(9_000_000));
        assert_eq!(first, second);
        assert_eq!(notices(Some(&first), &second), []);
        assert!(first.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    }

    #[test]
    fn ready_is_true_only_if_everything_else_is_in_order() {
        let status = |report: Report| build(&user(None), &report, whole_seconds(0));
        assert_eq!(ready_of(&status(report())), ("True", "Ready"));
        let lost = ConditionState::unmet("SecretLost", "deleted");
        assert_eq!(ready_of(&status(Report { secret: lost, ..report() })), ("False", "SecretLost"));
        let unavailable = ConditionState::unmet("StoreUnavailable", "no answer");
        assert_eq!(
            ready_of(&status(Report { published: unavailable, ..report() })),
            ("False", "StoreUnavailable")
        );
    }

    #[test]
    fn a_disabled_user_is_ready_and_not_enabled() {
        let enabled_of = |status: &TwoFactorUserStatus| {
            let mut all = status.conditions.iter();
            let enabled = all.find(|condition| condition.type_ == "Enabled").unwrap();
            (enabled.status.clone(), enabled.reason.clone())
        };
        let check = |report: Report, ready: (&str, &str), enabled: (&str, &str)| {
            let status = build(&user(None), &report, whole_seconds(0));
            assert_eq!(ready_of(&status), ready);
            assert_eq!(enabled_of(&status), (enabled.0.to_owned(), enabled.1.to_owned()));
            notices(None, &status)
        };
        check(report(), ("True", "Ready"), ("True", "Enabled"));
        let disabled = Report { enabled: false, ..report() };
        let [notice, _] = &check(disabled.clone(), ("True", "Disabled"), ("False", "Disabled"))[..]
        else {
            panic!("one Event for Disabled, and one for Published")
        };
        assert!(!notice.warning);
        let failed = Report { disabled_by_failures: true, ..report() };
        let emitted =
            check(failed.clone(), ("True", "DisabledByFailures"), ("False", "DisabledByFailures"));
        assert!(emitted[0].warning, "an attack is a warning");
        let both = Report { disabled_by_failures: true, ..disabled.clone() };
        check(both, ("True", "Disabled"), ("False", "Disabled"));
        let lost = ConditionState::unmet("SecretLost", "deleted");
        let lost = Report { secret: lost, ..disabled };
        check(lost, ("False", "SecretLost"), ("False", "Disabled"));
    }

    #[test]
    fn a_transition_time_changes_only_with_the_status() {
        let first = build(&user(None), &report(), whole_seconds(1000));
        let mut bad = report();
        bad.secret = ConditionState::unmet("SecretLost", "deleted");
        let second = build(&user(Some(first.clone())), &bad, whole_seconds(2000));
        let time = |status: &TwoFactorUserStatus, kind: &str| {
            let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
            found.last_transition_time.0.as_second()
        };
        assert_eq!((time(&second, "SecretReady"), time(&second, "Published")), (2, 1));
        bad.secret = ConditionState::unmet("SecretInvalid", "no key");
        let third = build(&user(Some(second)), &bad, whole_seconds(5000));
        assert_eq!(time(&third, "SecretReady"), 2, "another reason is no transition");
    }

    #[test]
    fn status_keeps_the_secret_name_after_the_secret_is_lost() {
        let first = build(&user(None), &report(), whole_seconds(1000));
        let later = Report { secret_name: None, rotated: None, ..report() };
        let second = build(&user(Some(first)), &later, whole_seconds(2000));
        assert_eq!(second.secret_name.as_deref(), Some("alice-totp"));
    }

    #[test]
    fn a_user_who_is_not_published_stays_disabled_by_failures() {
        let failed = Report { disabled_by_failures: true, ..report() };
        let first = build(&user(None), &failed, whole_seconds(1000));
        assert!(first.disabled_by_failures);
        let published = ConditionState::unmet("StoreUnavailable", "no answer");
        let away = Report { published, ..report() };
        let second = build(&user(Some(first)), &away, whole_seconds(2000));
        assert!(second.disabled_by_failures);
        let third = build(&user(Some(second)), &report(), whole_seconds(3000));
        assert!(!third.disabled_by_failures, "an administrator has reset the failures");
    }

    #[test]
    fn a_problem_emits_one_event() {
        let first = build(&user(None), &report(), whole_seconds(1000));
        assert_eq!(
            notices(None, &first).iter().map(|notice| notice.reason).collect::<Vec<_>>(),
            ["Published"]
        );
        let mut conflict = report();
        conflict.secret = ConditionState::unmet("Conflict", "taken");
        conflict.published = ConditionState::unmet("Conflict", "taken");
        let second = build(&user(Some(first.clone())), &conflict, whole_seconds(2000));
        let emitted = notices(Some(&first), &second);
        assert_eq!(emitted, [Notice::warning("Conflict", "taken")]);
    }
}
