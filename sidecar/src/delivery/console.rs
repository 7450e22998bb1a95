//! Shows messages on the console, for development.

use super::Order;

/// Shows the message that would have been sent.
pub(super) fn show(order: &Order<'_>) {
    say!(
        "[{} to {:?}] {}",
        order.user.delivery_method.name(),
        order.user.username.as_str(),
        order.texts().text(&order.values).trim_end().replace('\n', " ")
    );
}
