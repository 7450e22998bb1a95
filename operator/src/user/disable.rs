//! Disables a user whose Secret cannot be read or written, because disabling must not wait for it.

use twofactor_core::record::UserRecord;
use twofactor_store::publisher::DesiredUser;

use super::subject::Subject;
use super::{failures, publish};
use crate::state::{Runtime, UserState};

/// Publishes that the user is disabled, if the administrator has disabled it. The published record
/// keeps its seed.
pub async fn disable(runtime: &Runtime, users: &UserState, subject: &Subject<'_>) {
    if subject.definition.enabled {
        return;
    }
    let current = subject.realm.publisher.current(subject.pseudonym()).await;
    let Ok(Some(record)) = current else { return };
    let record = UserRecord { definition: subject.definition.clone(), ..record };
    let reset = failures::request(subject.realm, subject.user);
    let disabled = failures::had_disabled(subject.user);
    let desired = DesiredUser { record, fresh: false, reset, disabled };
    let (realm, uid) = (subject.realm, &subject.uid);
    if let Err(error) = publish::publish(runtime, users, realm, uid, desired, false).await {
        tracing::debug!(%error, "failed to disable a user");
    }
}
