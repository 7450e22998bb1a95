//! Writes the audit line of a request, which never contains a code, a seed or a destination, and
//! collects what the user's history says beside an outcome.

use http::HeaderMap;
use twofactor_core::audit::AuditContext;
use twofactor_core::names::Caller;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod;

/// Maximum length of a text from a header, in characters.
const LONGEST: usize = 200;

/// The end user's address and program, if the calling service passed them on.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The first address of `X-Forwarded-For`, or the first `for=` of `Forwarded` (RFC 7239).
    pub address: Option<String>,
    pub user_agent: Option<String>,
}

/// A generate or verify that has ended.
#[derive(Debug)]
pub struct Event<'a> {
    /// `generate` or `verify`.
    pub operation: &'static str,
    /// A constant word.
    pub outcome: &'static str,
    /// The username as the request has it.
    pub username: &'a str,
    /// The channel of a code that was delivered.
    pub channel: Option<&'static str>,
    pub caller: &'a Caller,
    pub origin: &'a Origin,
}

impl Origin {
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let forwarded_for = text("x-forwarded-for").and_then(|list| list.split(',').next());
        let address = forwarded_for.or_else(|| text("forwarded").and_then(first_forwarded));
        Self {
            address: address.and_then(shortened),
            user_agent: text("user-agent").and_then(shortened),
        }
    }

    /// Returns what the history of a user of `realm` says beside an outcome.
    pub fn audit_context(&self, realm: &RealmRecord, channel: DeliveryMethod) -> AuditContext {
        let retention = realm.audit.retention();
        let kept = if realm.audit.origin { self.clone() } else { Self::default() };
        AuditContext { channel, address: kept.address, user_agent: kept.user_agent, retention }
    }
}

fn first_forwarded(header: &str) -> Option<&str> {
    let element = header.split(',').next()?;
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"'))
    })
}

fn shortened(text: &str) -> Option<String> {
    let text: String = text.trim().chars().take(LONGEST).collect();
    (!text.is_empty()).then_some(text)
}

/// Writes the log line. Texts that a caller chose are recorded as strings, which each format quotes
/// once, so that they cannot look like another line or field.
pub fn record(event: &Event<'_>) {
    tracing::info!(
        target: "audit",
        operation = event.operation,
        outcome = event.outcome,
        username = event.username,
        channel = event.channel,
        caller = %event.caller,
        address = event.origin.address.as_deref(),
        user_agent = event.origin.user_agent.as_deref(),
        "{}",
        event.operation
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(headers: &[(&'static str, &str)]) -> Origin {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        Origin::from_headers(&headers)
    }

    #[test]
    fn the_first_forwarded_address_is_that_of_the_end_user() {
        assert_eq!(
            origin(&[("x-forwarded-for", "203.0.113.7, 10.0.0.1")]).address.as_deref(),
            Some("203.0.113.7")
        );
        let header = "proto=https;For=\"[2001:db8::1]:4711\", for=10.0.0.1";
        assert_eq!(origin(&[("forwarded", header)]).address.as_deref(), Some("[2001:db8::1]:4711"));
        assert_eq!(origin(&[("x-forwarded-for", "")]).address, None);
    }

    #[test]
    fn a_long_header_is_cut() {
        let long = "x".repeat(5000);
        assert_eq!(origin(&[("user-agent", &long)]).user_agent.unwrap().len(), LONGEST);
    }
}
