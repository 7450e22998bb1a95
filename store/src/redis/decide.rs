//! Makes decisions with the scripts in Redis, and learns from a reply that decides nothing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};
use twofactor_core::audit::AuditContext;
use twofactor_core::decision::{
    CLOCK_TOLERANCE, DeliveryReport, Event, Factor, Issuance, Issue, Undecided, Verdict,
    Verification,
};
use twofactor_core::limits::Allowance;
use twofactor_core::names::{Caller, Pseudonym, UserNames};
use twofactor_core::seal::Revision;
use twofactor_core::time::UnixMillis;

use super::scripts::{self, ScriptCall};
use super::{ACKNOWLEDGED_TIMEOUT, OPERATION_TIMEOUT, RedisStore};
use crate::StoreError;
use crate::connection::{Acknowledgement, Operation, ScriptCommand};

/// Interval after which a login that may not use the keys of histories is tried again.
const HISTORY_PAUSE: Duration = Duration::from_mins(1);

/// Reply of a script: a word and up to three numbers. The last one is 1 if the history could not be
/// written.
pub(super) struct Answer {
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
            // The sidecar's audit log has the entry, but the history does not.
            tracing::warn!("failed to write an entry of a user's history to Redis");
        }
    }
}

/// The end of an entry of a history, as [`super::history`] reads it.
fn details(audit: &AuditContext) -> String {
    let line = |text: &Option<String>| text.as_deref().unwrap_or_default().replace('\n', " ");
    format!(" {}\n{}\n{}", audit.channel.name(), line(&audit.address), line(&audit.user_agent))
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
        let UserNames { state, otp, history, .. } = self.names.user(user);
        let call = |checked_nodes: &str| {
            let call = scripts::Verify {
                state_key: &state,
                otp_key: &otp,
                history_key: self.history_key(&history),
                checked_nodes,
                revision: request.revision.0.to_string(),
                asked_at: request.asked_at.millis(),
                tolerance: millis(CLOCK_TOLERANCE),
                factor,
                caller: request.caller.as_str(),
                tag: request.tag.to_string(),
                matches: matches.join(","),
                period: request.period,
                skew: request.skew,
                most_failures: request.failures_per_day.into(),
                retention: millis(request.audit.retention),
                most_entries: request.audit.most_entries.into(),
                details: details(&request.audit),
            };
            call.of(&self.scripts.verify)
        };
        // Only an accepted code is worth waiting for replicas.
        let replicas = self.view.replicas.load(Ordering::Relaxed);
        let acknowledgement =
            (replicas > 0).then_some(Acknowledgement { word: "accepted", replicas });
        let Answer { word, numbers: [number, ..] } =
            self.decide(&state, acknowledgement, call).await?;
        match word.as_str() {
            "accepted" => Ok(Verdict::Accepted),
            "used" => Ok(Verdict::Used),
            "never-issued" => Ok(Verdict::NeverIssued),
            "wrong" => Ok(Verdict::Wrong),
            "expired" => Ok(Verdict::Expired),
            "blocked" => Ok(Verdict::Blocked { retry_after: duration(number) }),
            "failures-used-up" => Ok(Verdict::FailuresUsedUp { retry_after: duration(number) }),
            "disabled-by-failures" => Ok(Verdict::Disabled),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn issue(
        &self,
        user: &Pseudonym,
        request: &Issuance,
    ) -> Result<Issue, StoreError> {
        let UserNames { state, otp, history, .. } = self.names.user(user);
        let call = |checked_nodes: &str| {
            let call = scripts::Issue {
                state_key: &state,
                otp_key: &otp,
                history_key: self.history_key(&history),
                checked_nodes,
                revision: request.revision.0.to_string(),
                asked_at: request.asked_at.millis(),
                tolerance: millis(CLOCK_TOLERANCE),
                caller: request.caller.as_str(),
                tag: request.tag.to_string(),
                step: request.step.number(),
                period: request.period,
                lifetime: millis(request.lifetime),
                interval: millis(request.limits.generate_interval()),
                most_per_hour: request.limits.generates_per_hour.into(),
                most_own: request.own_per_hour.into(),
                retention: millis(request.audit.retention),
                most_entries: request.audit.most_entries.into(),
                details: details(&request.audit),
            };
            call.of(&self.scripts.issue)
        };
        let Answer { word, numbers: [first, second, _] } = self.decide(&state, None, call).await?;
        match word.as_str() {
            "issued" => Ok(Issue::Issued { expires_at: moment(first), asked_at: moment(second) }),
            "consumed" => Ok(Issue::Consumed { retry_after: duration(first) }),
            "too-soon" => Ok(Issue::TooSoon {
                retry_after: duration(first),
                in_flight: (second > 0).then(|| moment(second)),
            }),
            "share-used-up" => Ok(Issue::ShareUsedUp { retry_after: duration(first) }),
            "disabled-by-failures" => Ok(Issue::Disabled),
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn record_delivery(
        &self,
        user: &Pseudonym,
        report: &DeliveryReport,
    ) -> Result<(), StoreError> {
        let UserNames { state, history, .. } = self.names.user(user);
        let (give_back, asked_at) = match report.event {
            Event::Refused { asked_at } => ("pause", asked_at),
            Event::DeliveryLimitReached
            | Event::DeliveryShareUsedUp
            | Event::Sent
            | Event::NoSecret
            | Event::NoDeliveryMethod => ("nothing", UnixMillis::default()),
        };
        let call = || scripts::RecordDelivery {
            state_key: &state,
            history_key: self.history_key(&history),
            caller: report.caller.as_str(),
            operation: report.event.operation().name(),
            outcome: report.event.name(),
            give_back,
            asked_at: asked_at.millis(),
            retention: millis(report.audit.retention),
            most_entries: report.audit.most_entries.into(),
            details: details(&report.audit),
        };
        let run = async || {
            let call = call().of(&self.scripts.record_delivery);
            self.connection.run(&state, OPERATION_TIMEOUT, Operation::Script(&call)).await
        };
        let writes_history = self.writes_history();
        let mut answer = run().await;
        if writes_history && self.leaves_history_out(&answer) {
            answer = run().await;
        }
        let answer: Answer = answer?;
        match answer.word.as_str() {
            "no-state" => Err(Undecided::NoState.into()),
            word if word == report.event.name() => {
                answer.check_history();
                Ok(())
            }
            _ => Err(StoreError::Protocol),
        }
    }

    pub(crate) async fn count_delivery(
        &self,
        caller: &Caller,
        most: u32,
        most_own: u32,
    ) -> Result<Allowance, StoreError> {
        let deliveries = self.names.realm_deliveries();
        let caller = caller.as_str();
        let call = scripts::CountDelivery { deliveries_key: &deliveries, caller, most, most_own };
        let call = call.of(&self.scripts.count_delivery);
        let answer: Answer =
            self.connection.run(&deliveries, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
        match answer.word.as_str() {
            "granted" => Ok(Allowance::Granted),
            "limit-reached" => {
                Ok(Allowance::LimitReached { retry_after: duration(answer.numbers[0]) })
            }
            "share-used-up" => {
                Ok(Allowance::ShareUsedUp { retry_after: duration(answer.numbers[0]) })
            }
            _ => Err(StoreError::Protocol),
        }
    }

    /// The key of a history, or no key while the login may not use it.
    fn history_key<'k>(&self, key: &'k str) -> &'k str {
        if self.writes_history() { key } else { "" }
    }

    fn writes_history(&self) -> bool {
        self.view.without_history_until.load(Ordering::Relaxed) <= self.clock.now().millis()
    }

    /// Whether a script that wrote a history has to be run again without one. An operator of
    /// version 0.1 gives no permission for its key, and Redis then refuses the whole script; a
    /// rollback of the operator must fail no verify.
    fn leaves_history_out(&self, answer: &Result<Answer, StoreError>) -> bool {
        let is_refused = answer.as_ref().is_err_and(StoreError::is_permission_missing);
        if is_refused {
            let until = self.clock.now().millis() + millis(HISTORY_PAUSE);
            self.view.without_history_until.store(until, Ordering::Relaxed);
        }
        is_refused
    }

    /// Runs a deciding script. A node that this process does not know as checked may have been
    /// checked in the meantime, so the checked nodes are read again once.
    async fn decide<'s>(
        &'s self,
        state_key: &str,
        acknowledgement: Option<Acknowledgement>,
        call: impl Fn(&str) -> ScriptCommand<'s>,
    ) -> Result<Answer, StoreError> {
        let run = async || {
            let call = call(self.view.checked_nodes.load().as_str());
            let operation = Operation::Script(&call);
            let Some(acknowledgement) = acknowledgement else {
                return self
                    .connection
                    .run::<Answer>(state_key, OPERATION_TIMEOUT, operation)
                    .await;
            };
            self.connection
                .run_acknowledged(state_key, ACKNOWLEDGED_TIMEOUT, operation, acknowledgement)
                .await
        };
        let writes_history = self.writes_history();
        let mut answer = run().await;
        if writes_history && self.leaves_history_out(&answer) {
            answer = run().await;
        }
        let mut answer = answer?;
        if answer.word == "unchecked-node" {
            self.realm().await?;
            answer = run().await?;
        }
        let number = answer.numbers[0];
        match answer.word.as_str() {
            "unchecked-node" => {
                // It may be a former master, while new connections lead to the current one.
                self.connection.renew(state_key).await;
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
