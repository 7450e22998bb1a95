//! Records the outcome of a request: an audit line and a metric.

use crate::audit::{self, Event, Origin};
use crate::otp::records::Answers;
use crate::otp::requests::{CodeRequest, Generated, VerifyRequest};
use crate::otp::service::Service;
use crate::refusal::Refusal;

const DELIVERED: &str = "delivered";
/// The outcome in the metrics of everything that uniform answers do not tell apart.
const ANSWERED: &str = "answered";
const ACCEPTED: &str = "accepted";

/// The outcomes of requests that are not refused.
pub const SUCCESSES: [&str; 2] = [DELIVERED, ACCEPTED];

/// Records the outcome of a request for a code.
pub fn record_generate(
    service: &Service,
    request: &CodeRequest,
    result: Result<&Generated, &Refusal>,
) {
    let outcome = result.map_or_else(Refusal::name, |_| DELIVERED);
    let channel = result.ok().map(|generated| generated.channel.name());
    let username = request.username.as_str();
    let is_shown = result.is_err_and(Refusal::is_same_for_every_name);
    let is_uniform = count(service, "generate", outcome, is_shown);
    if is_uniform && !is_shown {
        service.metrics.delivery("any", ANSWERED, None);
    }
    record_outcome(service, "generate", outcome, username, channel, &request.origin);
}

/// Records the outcome of a request to verify a code.
pub fn record_verify<T>(service: &Service, request: &VerifyRequest, result: &Result<T, Refusal>) {
    let outcome = result.as_ref().map_or_else(Refusal::name, |_| ACCEPTED);
    let username = request.username.as_str();
    let is_shown = result.as_ref().err().is_none_or(Refusal::is_same_for_every_name);
    count(service, "verify", outcome, is_shown);
    record_outcome(service, "verify", outcome, username, None, &request.origin);
}

/// Counts an outcome. With uniform answers, the metrics tell apart only what answers do
/// (`is_shown`), because more programs may read metrics than logs. Returns whether answers are
/// uniform.
fn count(
    service: &Service,
    operation: &'static str,
    outcome: &'static str,
    is_shown: bool,
) -> bool {
    let realm = service.records.known_realm();
    let is_uniform = realm.is_some_and(|realm| realm.answers == Answers::Uniform);
    let outcome = if is_uniform && !is_shown { ANSWERED } else { outcome };
    service.metrics.decision(operation, outcome);
    is_uniform
}

fn record_outcome(
    service: &Service,
    operation: &'static str,
    outcome: &'static str,
    username: &str,
    channel: Option<&'static str>,
    origin: &Origin,
) {
    // The default of the policy holds while the realm is not known.
    let no_origin = Origin::default();
    let with_origin = service.records.known_realm().is_none_or(|realm| realm.record.audit.origin);
    audit::record(&Event {
        operation,
        outcome,
        username,
        channel,
        caller: &service.caller,
        origin: if with_origin { origin } else { &no_origin },
    });
}
