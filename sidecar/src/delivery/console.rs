//! The console, for development. Enters: a message. Leaves: the same, on standard output.

use super::Order;

/// Shows what would have been sent.
pub(super) fn show(order: &Order<'_>) {
    say!(
        "[{} to {:?}] {}",
        order.user.delivery_method.name(),
        order.user.username.as_str(),
        order.realm.message.text(&order.values).trim_end().replace('\n', " ")
    );
}
