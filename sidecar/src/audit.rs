//! Writes the audit line of a request, which never contains a code, a seed or a destination, and
//! collects what the user's history says beside an outcome.

use twofactor_core::audit::AuditContext;
use twofactor_core::names::Caller;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod;

/// The end user's address and program, if the calling service passed them on.
#[derive(Clone, Debug, Default)]
pub struct Origin {
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
    /// Returns what the history of a user of `realm` says beside an outcome.
    pub fn audit_context(&self, realm: &RealmRecord, channel: DeliveryMethod) -> AuditContext {
        let kept = if realm.audit.origin { self.clone() } else { Self::default() };
        let (address, user_agent) = (kept.address, kept.user_agent);
        AuditContext { address, user_agent, ..AuditContext::new(realm.audit, channel) }
    }
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
