//! Decides whether a user can be served: the object must be valid and own its username.

use kube::ResourceExt;
use twofactor_api::TwoFactorUser;
use twofactor_api::validate::validate;
use twofactor_core::user::UserDefinition;

use super::status::Report;
use crate::k8s::conditions::ConditionState;
use crate::state::realms::Realm;
use crate::state::{Runtime, UserState};

/// Returns the user's definition, or the report of why the user is not served.
pub fn admit(
    runtime: &Runtime,
    users: &UserState,
    realm: &Realm,
    user: &TwoFactorUser,
) -> Result<UserDefinition, Box<Report>> {
    let refused = |state: ConditionState| {
        let username = user.spec.username.clone().unwrap_or_else(|| user.name_any());
        Box::new(Report::refused(username, state, user.spec.enabled))
    };
    let definition = validate(user).map_err(|errors| {
        // A user that was valid before must not be served any longer. The cleanup removes it.
        if let Some((username, true)) =
            users.usernames().claim_of(&realm.namespace, &user.name_any())
        {
            realm.schedule_removal(realm.publisher.keys().pseudonym(&username));
            runtime.removals.notify_one();
        }
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        refused(ConditionState::unmet("Invalid", errors.join("; ")))
    })?;
    let usernames = users.usernames();
    match usernames.owner(&realm.namespace, &definition.username) {
        Some(owner) if Some(owner.uid.as_ref()) != user.metadata.uid.as_deref() => {
            let message = format!(
                "The username belongs to the older user {}: delete one of the two",
                owner.name
            );
            Err(refused(ConditionState::unmet("Conflict", message)))
        }
        _ => Ok(definition),
    }
}
