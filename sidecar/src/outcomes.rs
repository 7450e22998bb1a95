//! Every outcome that there is. Enters: nothing. Leaves: their names, which
//! `docs/reference/outcomes.md` has to tell about, each of them.

use std::time::Duration;

use crate::refusal::Refusal;

/// The names of what can come of a request to generate or verify that is not refused.
pub const SUCCESSES: [&str; 2] = ["delivered", "accepted"];

/// The names of all refusals, as logs, metrics and problems have them.
#[must_use]
pub fn refusals() -> Vec<&'static str> {
    let first = Refusal::UnknownUser;
    std::iter::successors(Some(first), after).map(|refusal| refusal.name()).collect()
}

/// Goes from each refusal to the next. Whoever adds one is told by the compiler that it has no
/// place here, and by a test that the page does not tell about it.
fn after(refusal: &Refusal) -> Option<Refusal> {
    let retry_after = Duration::ZERO;
    Some(match refusal {
        Refusal::UnknownUser => Refusal::Disabled,
        Refusal::Disabled => Refusal::NoSeed,
        Refusal::NoSeed => Refusal::NoDelivery,
        Refusal::NoDelivery => Refusal::Malformed(String::new()),
        Refusal::Malformed(_) => Refusal::WrongCode,
        Refusal::WrongCode => Refusal::UsedCode,
        Refusal::UsedCode => Refusal::CodeConsumed { retry_after },
        Refusal::CodeConsumed { .. } => Refusal::TooSoon { retry_after, in_flight: None },
        Refusal::TooSoon { .. } => Refusal::DeliveryLimitReached { retry_after },
        Refusal::DeliveryLimitReached { .. } => Refusal::Blocked { retry_after },
        Refusal::Blocked { .. } => Refusal::NotDelivered(""),
        Refusal::NotDelivered(_) => Refusal::Unavailable,
        Refusal::Unavailable => Refusal::NamespaceNotAllowed,
        Refusal::NamespaceNotAllowed => Refusal::NoSuchPath,
        Refusal::NoSuchPath => Refusal::WrongMethod(""),
        Refusal::WrongMethod(_) => Refusal::ForeignOrigin,
        Refusal::ForeignOrigin => Refusal::TooLarge(0),
        Refusal::TooLarge(_) => Refusal::TooSlow,
        Refusal::TooSlow => Refusal::Internal,
        Refusal::Internal => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_a_name_of_its_own() {
        let mut names = refusals();
        assert_eq!(names.first(), Some(&"unknown-user"));
        assert_eq!(names.last(), Some(&"internal-error"));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
