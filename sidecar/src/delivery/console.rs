//! The console, for development. Enters: a message. Leaves: the same, on standard output.

use twofactor_core::user::UserDefinition;

use super::Message;

/// Shows what would have been sent.
pub(super) fn show(user: &UserDefinition, message: &Message<'_>) {
    say!(
        "[{} to {:?}] {}",
        user.delivery_method.name(),
        user.username.as_str(),
        message.text().trim_end().replace('\n', " ")
    );
}
