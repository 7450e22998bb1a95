//! Holds every user object in a packed form, because there can be a hundred thousand. It keeps only
//! what a reconciliation needs: no labels, managed fields or annotations of other programs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use twofactor_api::user::{TwoFactorUserSpec, TwoFactorUserStatus};
use twofactor_api::{TwoFactorUser, labels};

use super::user_ref::UserRef;

/// The user objects, as the watch last reported them.
#[derive(Debug, Default)]
pub struct UserObjects(RwLock<HashMap<Arc<str>, Namespace>>);

#[derive(Debug, Default)]
struct Namespace {
    users: HashMap<Arc<str>, PackedUser>,
    /// Numbers of users by what their status says.
    counts: BTreeMap<Summary, usize>,
}

impl Namespace {
    fn ready(&self) -> usize {
        self.counts.iter().filter(|(summary, _)| summary.ready).map(|(_, users)| users).sum()
    }

    fn no_longer(&mut self, old: Option<PackedUser>) {
        let Some(old) = old else { return };
        if let Some(users) = self.counts.get_mut(&old.summary) {
            *users -= 1;
        }
        self.counts.retain(|_, users| *users > 0);
    }
}

#[derive(Debug)]
struct PackedUser {
    /// [`Content`] in JSON.
    content: Box<[u8]>,
    summary: Summary,
}

/// What the status of a user says, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Summary {
    /// Whether services can verify the user.
    pub ready: bool,
    /// Position of the reason in [`REASONS`].
    reason: u8,
    /// Whether failed attempts have disabled the user.
    pub disabled_by_failures: bool,
}

/// What is kept of an object. A tuple has no names of fields in JSON.
#[derive(Serialize, Deserialize)]
struct Content(
    Option<String>,
    Option<i64>,
    Option<Time>,
    Vec<(String, String)>,
    TwoFactorUserSpec,
    Option<Status>,
);

/// The fields of a status, in their order.
#[derive(Serialize, Deserialize)]
struct Status(
    Option<i64>,
    Vec<PackedCondition>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    bool,
);

/// Type, status, reason, message, generation and time of a condition.
#[derive(Serialize, Deserialize)]
struct PackedCondition(String, String, String, String, Option<i64>, Time);

/// The annotations that the operator reads.
const ANNOTATIONS: [&str; 2] = [labels::ROTATE_ANNOTATION, labels::RESET_FAILURES_ANNOTATION];

/// The reason of the condition of a user that failed attempts have disabled.
pub const DISABLED_BY_FAILURES: &str = "DisabledByFailures";

/// The reasons of the condition `Ready`, in one byte for each user. Only the operator writes them;
/// another one counts as the last of the list.
const REASONS: [&str; 20] = [
    NOT_RECONCILED,
    "Ready",
    "Disabled",
    DISABLED_BY_FAILURES,
    "Invalid",
    "Conflict",
    "SecretInvalid",
    "SecretLost",
    "SecretNotOurs",
    "SecretNotProven",
    "SecretRefused",
    "ImportRefused",
    "WaitingForPredecessor",
    "WaitingForStore",
    "ClockDiffers",
    "NewSeedsHeld",
    "RedisOwnedByAnother",
    "StoreFilling",
    "StoreUnavailable",
    "other",
];

/// In place of a reason, while a user has no status.
const NOT_RECONCILED: &str = "none";

impl Summary {
    /// Summarizes the status of `user`.
    pub fn of(user: &TwoFactorUser) -> Self {
        let conditions = user.status.iter().flat_map(|status| &status.conditions);
        let ready = conditions.into_iter().find(|it| it.type_ == labels::CONDITION_READY);
        let reason = ready.map_or(NOT_RECONCILED, |it| it.reason.as_str());
        let position = REASONS.iter().position(|known| *known == reason);
        Self {
            ready: ready.is_some_and(|it| it.status == "True"),
            reason: u8::try_from(position.unwrap_or(REASONS.len() - 1)).unwrap_or(0),
            // Before version 0.2, only the reason said it.
            disabled_by_failures: ready.is_some_and(|it| it.reason == DISABLED_BY_FAILURES)
                || user.status.as_ref().is_some_and(|status| status.disabled_by_failures),
        }
    }
}

impl UserObjects {
    /// Keeps a user that was created or changed.
    pub fn insert(&self, reference: &UserRef, user: TwoFactorUser) {
        let packed = PackedUser::pack(user);
        let mut namespaces = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let namespace = namespaces.entry(reference.namespace.clone()).or_default();
        *namespace.counts.entry(packed.summary).or_default() += 1;
        let old = namespace.users.insert(reference.name.clone(), packed);
        namespace.no_longer(old);
    }

    /// Removes a deleted user.
    pub fn remove(&self, reference: &UserRef) {
        let mut namespaces = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(namespace) = namespaces.get_mut(&reference.namespace) else { return };
        let old = namespace.users.remove(&reference.name);
        namespace.no_longer(old);
        if namespace.users.is_empty() {
            namespaces.remove(&reference.namespace);
        }
    }

    /// Returns a user, if it exists.
    pub fn get(&self, reference: &UserRef) -> Option<TwoFactorUser> {
        let namespaces = self.namespaces();
        namespaces.get(&reference.namespace)?.users.get(&reference.name)?.unpack(reference)
    }

    /// Returns what the status of a user says, if the user exists.
    pub fn summary(&self, reference: &UserRef) -> Option<Summary> {
        let namespaces = self.namespaces();
        Some(namespaces.get(&reference.namespace)?.users.get(&reference.name)?.summary)
    }

    /// Returns the number of users and of ready users in a namespace.
    pub fn count(&self, namespace: &str) -> (usize, usize) {
        self.namespaces().get(namespace).map_or((0, 0), |it| (it.users.len(), it.ready()))
    }

    /// Returns the number of ready users, and the numbers of others by reason.
    pub fn count_all(&self) -> (usize, BTreeMap<&'static str, usize>) {
        let (mut ready, mut others) = (0, BTreeMap::new());
        let namespaces = self.namespaces();
        for (summary, users) in namespaces.values().flat_map(|it| &it.counts) {
            if summary.ready {
                ready += users;
            } else {
                *others.entry(REASONS[usize::from(summary.reason)]).or_default() += users;
            }
        }
        (ready, others)
    }

    fn namespaces(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Namespace>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PackedUser {
    fn pack(user: TwoFactorUser) -> Self {
        let summary = Summary::of(&user);
        let annotation = |name: &str| {
            let value = user.annotations().get(name)?;
            Some((name.to_owned(), value.clone()))
        };
        let content = Content(
            user.metadata.uid.clone(),
            user.metadata.generation,
            user.metadata.creation_timestamp.clone(),
            ANNOTATIONS.into_iter().filter_map(annotation).collect(),
            user.spec,
            user.status.map(Status::from),
        );
        let content = serde_json::to_vec(&content)
            .unwrap_or_else(|_| unreachable!("a user was read from JSON, so it can be written"));
        Self { content: content.into(), summary }
    }

    fn unpack(&self, reference: &UserRef) -> Option<TwoFactorUser> {
        let Content(uid, generation, creation_timestamp, annotations, spec, status) =
            serde_json::from_slice(&self.content).ok()?;
        let annotations = (!annotations.is_empty()).then(|| annotations.into_iter().collect());
        let metadata = ObjectMeta {
            name: Some(reference.name.as_ref().to_owned()),
            namespace: Some(reference.namespace.as_ref().to_owned()),
            uid,
            generation,
            creation_timestamp,
            annotations,
            ..ObjectMeta::default()
        };
        Some(TwoFactorUser { metadata, spec, status: status.map(TwoFactorUserStatus::from) })
    }
}

impl From<TwoFactorUserStatus> for Status {
    fn from(status: TwoFactorUserStatus) -> Self {
        let TwoFactorUserStatus {
            observed_generation,
            conditions,
            secret_name,
            username,
            rotated,
            failures_reset: reset,
            disabled_by_failures: disabled,
        } = status;
        let packed = |it: Condition| {
            PackedCondition(
                it.type_,
                it.status,
                it.reason,
                it.message,
                it.observed_generation,
                it.last_transition_time,
            )
        };
        let conditions = conditions.into_iter().map(packed).collect();
        Self(observed_generation, conditions, secret_name, username, rotated, reset, disabled)
    }
}

impl From<Status> for TwoFactorUserStatus {
    fn from(status: Status) -> Self {
        let Status(
            observed_generation,
            conditions,
            secret_name,
            username,
            rotated,
            reset,
            disabled,
        ) = status;
        let unpacked = |it| {
            let PackedCondition(
                type_,
                status,
                reason,
                message,
                observed_generation,
                last_transition_time,
            ) = it;
            Condition { type_, status, reason, message, observed_generation, last_transition_time }
        };
        Self {
            observed_generation,
            conditions: conditions.into_iter().map(unpacked).collect(),
            secret_name,
            username,
            rotated,
            failures_reset: reset,
            disabled_by_failures: disabled,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::user_ref::reference;

    fn carol(ready: &str, note: &str) -> TwoFactorUser {
        serde_json::from_value(json!({
            "apiVersion": labels::API_VERSION,
            "kind": "TwoFactorUser",
            "metadata": {
                "name": "carol", "namespace": "people", "uid": "uid-1", "generation": 3,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": { "note": note, labels::ROTATE_ANNOTATION: "1" },
            },
            "spec": { "email": "carol@example.org" },
            "status": { "secretName": "carol-totp", "username": "carol", "rotated": "1",
                "failuresReset": "2", "disabledByFailures": true, "observedGeneration": 3, "conditions": [{
                "type": "Ready", "status": ready, "reason": "Ready", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 3,
            }] },
        }))
        .unwrap()
    }

    #[test]
    fn a_user_comes_back_without_the_annotations_of_others() {
        let (users, user) = (UserObjects::default(), carol("True", &"x".repeat(250_000)));
        let mut expected = user.clone();
        expected.annotations_mut().remove("note");
        let name = reference(&user);
        users.insert(&name, user);
        assert_eq!(users.get(&name), Some(expected));
        let size = users.namespaces()["people"].users["carol"].content.len();
        assert!(size < 400, "{size} bytes");
    }

    #[test]
    fn users_are_counted_by_namespace_and_by_what_their_status_says() {
        let users = UserObjects::default();
        let name = reference(&carol("True", ""));
        let count = || (users.count("people"), users.count_all());
        users.insert(&name, carol("True", ""));
        assert_eq!(count(), ((1, 1), (1, BTreeMap::new())));
        let mut lost = carol("False", "");
        for (reason, shown) in [("SecretLost", "SecretLost"), ("OfTomorrow", "other")] {
            lost.status.as_mut().unwrap().conditions[0].reason = reason.to_owned();
            users.insert(&name, lost.clone());
            assert_eq!(count(), ((1, 0), (0, [(shown, 1)].into())));
        }
        lost.status = None;
        users.insert(&name, lost);
        assert_eq!(count(), ((1, 0), (0, [(NOT_RECONCILED, 1)].into())));
        users.remove(&name);
        users.remove(&name);
        assert_eq!((count(), users.get(&name)), (((0, 0), (0, BTreeMap::new())), None));
    }
}
