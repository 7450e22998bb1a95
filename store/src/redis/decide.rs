//! Decisions. Enters: requests. Leaves: what the scripts in Redis made of them, and what there is
//! to learn from a refusal.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Script, ScriptInvocation, Value};
use twofactor_core::audit::{AuditContext, Entry};
use twofactor_core::decision::{
    CLOCK_TOLERANCE, DeliveryReport, Event, Factor, Issuance, Issue, THROTTLE, Undecided, Verdict,
    Verification,
};
use twofactor_core::limits::{Allowance, MOST_CODES_IN_FLIGHT};
use twofactor_core::names::{Pseudonym, UserNames};
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;

use super::{ACKNOWLEDGED_TIMEOUT, OPERATION_TIMEOUT, RedisStore, text};
use crate::StoreError;
use crate::connection::{Acknowledgement, Operation};

const AUDIT: &str = include_str!("../scripts/audit.lua");
const ASKED: &str = include_str!("../scripts/asked.lua");

/// The scripts that decide.
pub(super) struct Scripts {
    verify: Script,
    issue: Script,
    conclude: Script,
    deliveries: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        let script = |parts: &[&str]| Script::new(&text(&parts.concat()));
        Self {
            verify: Script::new(&verify_script()),
            issue: Script::new(&issue_script()),
            conclude: script(&[AUDIT, include_str!("../scripts/conclude.lua")]),
            deliveries: script(&[include_str!("../scripts/deliveries.lua")]),
        }
    }
}

/// The script that decides about a submitted code, for measuring what Redis alone takes for it. Its
/// arguments are described at its beginning.
#[must_use]
pub fn verify_script() -> String {
    text(&[AUDIT, include_str!("../scripts/verify.lua")].concat())
}

/// The script that decides whether a code is made, for the same purpose.
#[must_use]
pub fn issue_script() -> String {
    text(&[AUDIT, ASKED, include_str!("../scripts/issue.lua")].concat())
}

/// What a deciding script answers: a word and up to three numbers, of which the last is 1 when the
/// history could not be written.
struct Answer {
    word: String,
    numbers: [i64; 3],
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let parts: Vec<Value> = FromRedisValue::from_redis_value(value)?;
        let mut parts = parts.into_iter();
        let word = FromRedisValue::from_redis_value(parts.next().unwrap_or(Value::Nil))?;
        let mut numbers = [0; 3];
        for (number, part) in numbers.iter_mut().zip(parts) {
            *number = FromRedisValue::from_redis_value(part)?;
        }
        Ok(Self { word, numbers })
    }
}

impl Answer {
    fn check_history(&self) {
        if self.numbers[2] != 0 {
            // The log line is the record; this one tells that the store has less.
            tracing::warn!("Redis did not take an entry of a user's history");
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn duration(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or_default())
}

fn moment(number: i64) -> UnixMillis {
    UnixMillis::new(u64::try_from(number).unwrap_or_default())
}

fn audit_arguments(call: &mut ScriptInvocation<'_>, audit: &AuditContext) {
    call.arg(millis(audit.retention))
        .arg(audit.channel.name())
        .arg(audit.address.as_deref().unwrap_or_default())
        .arg(audit.user_agent.as_deref().unwrap_or_default());
}

impl RedisStore {
    pub(crate) async fn verify(
        &self,
        user: &Pseudonym,
        request: &Verification,
    ) -> Result<Verdict, StoreError> {
        let matches: Vec<String> =
            request.matches.iter().map(|step| step.number().to_string()).collect();
        let factor = match request.factor {
            Factor::Delivered => "delivered",
            Factor::Authenticator => "authenticator",
        };
        let script = &self.scripts.deciding.verify;
        let Answer { word, numbers: [number, ..] } = self
            .decide(script, user, request.revision, request.asked_at, |call| {
                call.arg(factor)
                    .arg(request.caller.as_str())
                    .arg(request.tag.to_string())
                    .arg(matches.join(","))
                    .arg(request.period)
                    .arg(request.skew)
                    .arg(THROTTLE.threshold)
                    .arg(millis(THROTTLE.first_block))
                    .arg(millis(THROTTLE.longest_block))
                    .arg(THROTTLE.disable_after);
                audit_arguments(call, &request.audit);
            })
            .await?;
        match word.as_str() {
            "accepted" => Ok(Verdict::Accepted),
            "used" => Ok(Verdict::Used),
            "never-issued" => Ok(Verdict::NeverIssued),
            "wrong" => Ok(Verdict::Wrong),
            "expired" => Ok(Verdict::Expired),
            "blocked" => Ok(Verdict::Blocked { retry_after: duration(number) }),
            "disabled-by-failures" => Ok(Verdict::Disabled),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn issue(
        &self,
        user: &Pseudonym,
        request: &Issuance,
    ) -> Result<Issue, StoreError> {
        let script = &self.scripts.deciding.issue;
        let Answer { word, numbers: [first, second, _] } = self
            .decide(script, user, request.revision, request.asked_at, |call| {
                call.arg(request.caller.as_str())
                    .arg(request.tag.to_string())
                    .arg(request.step.number())
                    .arg(request.period)
                    .arg(millis(request.lifetime))
                    .arg(millis(request.limits.generate_interval()))
                    .arg(request.limits.generates_per_hour);
                audit_arguments(call, &request.audit);
                call.arg(MOST_CODES_IN_FLIGHT);
            })
            .await?;
        match word.as_str() {
            "issued" => Ok(Issue::Issued { expires_at: moment(first), asked_at: moment(second) }),
            "consumed" => Ok(Issue::Consumed { retry_after: duration(first) }),
            "too-soon" => Ok(Issue::TooSoon {
                retry_after: duration(first),
                in_flight: (second > 0).then(|| moment(second)),
            }),
            "disabled-by-failures" => Ok(Issue::Disabled),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn record_delivery(
        &self,
        user: &Pseudonym,
        report: &DeliveryReport,
    ) -> Result<(), StoreError> {
        let UserNames { state, log, .. } = self.names.user(user);
        let (give_back, asked_at) = match report.event {
            Event::Refused { asked_at } => ("pause", asked_at),
            Event::DeliveryLimitReached
            | Event::Sent
            | Event::NoSecret
            | Event::NoDeliveryMethod => ("nothing", UnixMillis::default()),
        };
        let mut call = self.scripts.deciding.conclude.prepare_invoke();
        call.key(&[&state, &log])
            .arg(report.caller.as_str())
            .arg(report.event.operation().name())
            .arg(report.event.name())
            .arg(give_back)
            .arg(asked_at.millis());
        audit_arguments(&mut call, &report.audit);
        let answer: Answer =
            self.connection.run(&state, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
        match answer.word.as_str() {
            "concluded" => {
                answer.check_history();
                Ok(())
            }
            "no-state" => Err(Undecided::NoState.into()),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn count_delivery(&self, most: u32) -> Result<Allowance, StoreError> {
        let deliveries = self.names.realm_deliveries();
        let mut call = self.scripts.deciding.deliveries.prepare_invoke();
        call.key(&deliveries).arg(most);
        let answer: Answer =
            self.connection.run(&deliveries, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
        match answer.word.as_str() {
            "granted" => Ok(Allowance::Granted),
            "used-up" => Ok(Allowance::UsedUp { retry_after: duration(answer.numbers[0]) }),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn history(&self, user: &Pseudonym) -> Result<Vec<Entry>, StoreError> {
        let mut command = redis::cmd("XRANGE");
        let log = self.names.user(user).log;
        command.arg(&log).arg("-").arg("+");
        let entries: Vec<(String, HashMap<String, String>)> = self.query(&log, &command).await?;
        entries.into_iter().map(|(id, fields)| entry(&id, fields)).collect()
    }

    /// Runs a deciding script. A node that is not among the guards known here may have been checked
    /// since they were read, so they are read again once.
    async fn decide(
        &self,
        script: &Script,
        user: &Pseudonym,
        revision: Revision,
        asked_at: UnixMillis,
        arguments: impl Fn(&mut ScriptInvocation<'_>),
    ) -> Result<Answer, StoreError> {
        let UserNames { state, otp, log, .. } = self.names.user(user);
        let run = async || {
            let mut call = script.prepare_invoke();
            call.key(&[&state, &otp, &log])
                .arg(self.view.checked_nodes.load().as_str())
                .arg(revision.0)
                .arg(asked_at.millis())
                .arg(millis(CLOCK_TOLERANCE));
            arguments(&mut call);
            let replicas = self.view.replicas.load(Ordering::Relaxed);
            let operation = Operation::Script(&call);
            // Only an accepted code is worth the wait.
            if replicas == 0 || script.get_hash() != self.scripts.deciding.verify.get_hash() {
                return self.connection.run::<Answer>(&state, OPERATION_TIMEOUT, operation).await;
            }
            let acknowledgement = Acknowledgement { word: "accepted", replicas };
            self.connection
                .run_acknowledged(&state, ACKNOWLEDGED_TIMEOUT, operation, acknowledgement)
                .await
        };
        let mut answer = run().await?;
        if answer.word == "unguarded" {
            self.realm().await?;
            answer = run().await?;
        }
        let number = answer.numbers[0];
        match answer.word.as_str() {
            "unguarded" => {
                // It may be a former master, while new connections lead to the present one.
                self.connection.renew(&state).await;
                Err(Undecided::UncheckedNode.into())
            }
            "no-state" => Err(Undecided::NoState.into()),
            "stale" => {
                Err(Undecided::Stale { current: Revision(number.try_into().unwrap_or_default()) }
                    .into())
            }
            "clock-off" => {
                let now = moment(number);
                let ours = self.clock.now();
                let offset = i64::try_from(now.millis()).unwrap_or_default()
                    - i64::try_from(ours.millis()).unwrap_or_default();
                self.view.offset.store(offset, Ordering::Relaxed);
                Err(Undecided::ClockOff { now }.into())
            }
            _ => {
                answer.check_history();
                Ok(answer)
            }
        }
    }
}

/// Reads an entry of a history. Its words are those of the release that wrote it, so any word is
/// accepted.
fn entry(id: &str, mut fields: HashMap<String, String>) -> Result<Entry, StoreError> {
    let at = id.split('-').next().and_then(|millis| millis.parse().ok());
    let mut required = |name: &str| fields.remove(name).ok_or(StoreError::Protocol);
    Ok(Entry {
        at: UnixMillis::new(at.ok_or(StoreError::Protocol)?),
        operation: required("operation")?,
        outcome: required("outcome")?,
        caller: required("caller")?,
        channel: required("channel")?,
        address: fields.remove("address"),
        user_agent: fields.remove("user_agent"),
        repeated: fields.remove("repeated"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_an_earlier_release_wrote_under_its_own_word_is_read() {
        let fields = [
            ("operation", "delivery"),
            ("outcome", "deliveries-used-up"),
            ("caller", "kms"),
            ("channel", "email"),
            ("repeated", "delivery/deliveries-used-up=3"),
        ];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let read = entry("1798000000000-0", fields).unwrap();
        assert_eq!(read.at, UnixMillis::new(1_798_000_000_000));
        assert_eq!(read.outcome, "deliveries-used-up");
        assert_eq!(read.repeated.as_deref(), Some("delivery/deliveries-used-up=3"));
    }
}
