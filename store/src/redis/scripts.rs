//! Declares the scripts: the keys and arguments of each, which its Lua code reads as local
//! variables of the same name.

use std::time::Duration;

use redis::{Cmd, ToRedisArgs};
use twofactor_core::decision::{BLOCK_MARGIN, BUDGET, LONGEST_AHEAD, THROTTLE};
use twofactor_core::limits::MAXIMUM_CODES_IN_FLIGHT;
use twofactor_core::realm::OtpLifetime;
use twofactor_core::seal::BEGINNING_BYTES;
use twofactor_core::totp::LONGEST_PERIOD;

pub use crate::connection::ScriptCommand;

/// Maximum length of all texts in a call, in bytes: enough for the checked nodes of a cluster of
/// 300 masters. A service can call the scripts with any text, and Redis serves no other client
/// meanwhile.
const LONGEST_TEXTS: usize = 32 * 1024;

const PRELUDE: &str = include_str!("../scripts/lib/prelude.lua");
const PRECONDITIONS: &str = include_str!("../scripts/lib/preconditions.lua");
const HISTORY: &str = include_str!("../scripts/lib/history.lua");
const CHECKED_NODES: &str = include_str!("../scripts/lib/checked_nodes.lua");
const CLOCK_CHECK: &str = include_str!("../scripts/lib/clock_check.lua");
const SPOILT: &str = include_str!("../scripts/lib/spoilt.lua");

/// Maximum difference between the clocks of Redis and of the publisher with which moments of Redis
/// are published.
const PUBLISHERS_CLOCK_TOLERANCE: Duration = Duration::from_mins(1);
/// Lifetime of an owner's mark, after the last operator of the installation has ended.
const OWNER_LIFETIME: Duration = Duration::from_hours(30 * 24);
/// Maximum length of a text in the state. The longest is that of a hundred moments.
const LONGEST_TEXT: u64 = 2000;
/// Maximum number of fields of a state and of an OTP log: some for each allowed namespace, and the
/// codes in flight.
const MOST_FIELDS: u64 = 4096;
/// Number of fields of a realm's counts from which no more are counted for their caller.
const MOST_COUNTS: u64 = 2048;
/// Maximum size of a key that sidecars write.
const MOST_BYTES: u64 = 2 * 1024 * 1024;

/// Who loads the scripts into Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This process, if Redis does not know them.
    Own,
    /// The publisher. A script that Redis does not know is an error until it is loaded.
    Publisher,
}

/// A script that Redis can be asked to run.
pub struct Script {
    hash: String,
    text: String,
    source: Source,
}

impl Script {
    /// Prepares the script `text`.
    #[must_use]
    pub fn new(text: String, source: Source) -> Self {
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { hash, text, source }
    }

    /// The SHA-1 of the text, which is the script's name in Redis.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn call(&self, keys: usize) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(keys);
        command
    }

    fn command(&self, command: Cmd) -> ScriptCommand<'_> {
        let text = (self.source == Source::Own).then_some(self.text.as_str());
        ScriptCommand { command, text }
    }
}

/// The scripts that sidecars of this and of the previous release call. The latter may run beside
/// sidecars of this release, and neither may load a script.
#[must_use]
pub fn of_sidecars() -> Vec<Script> {
    let previous = [
        include_str!("../scripts/previous/verify.lua"),
        include_str!("../scripts/previous/issue.lua"),
        include_str!("../scripts/previous/record_delivery.lua"),
        include_str!("../scripts/previous/count_delivery.lua"),
    ];
    let current = [Verify::text(), Issue::text(), RecordDelivery::text(), CountDelivery::text()];
    let texts = current.into_iter().chain(previous.map(str::to_owned));
    texts.map(|text| Script::new(text, Source::Publisher)).collect()
}

/// How Lua reads an argument, which arrives as text.
#[derive(Clone, Copy)]
pub enum Kind {
    /// As it is.
    Text,
    /// As a number.
    Number,
    /// As true or false.
    Flag,
}

/// A value that can be an argument.
pub trait Argument: ToRedisArgs {
    /// How Lua reads it.
    const KIND: Kind;
}

impl Argument for &str {
    const KIND: Kind = Kind::Text;
}

impl Argument for String {
    const KIND: Kind = Kind::Text;
}

impl Argument for &[u8] {
    const KIND: Kind = Kind::Text;
}

impl Argument for u64 {
    const KIND: Kind = Kind::Number;
}

impl Argument for u32 {
    const KIND: Kind = Kind::Number;
}

impl Argument for usize {
    const KIND: Kind = Kind::Number;
}

impl Argument for u8 {
    const KIND: Kind = Kind::Number;
}

impl Argument for bool {
    const KIND: Kind = Kind::Flag;
}

/// A call of a script. The struct has one field for each key and argument, so a call that leaves
/// one out, or passes one that the script does not have, does not compile.
pub trait ScriptCall: Sized {
    /// The names of the keys, in the order of `KEYS`. A history is always the last one, and is left
    /// out if it is empty: the script then writes none, and says so.
    const KEYS: &'static [&'static str];
    /// The names of the arguments, in the order of `ARGV`.
    const ARGUMENTS: &'static [(&'static str, Kind)];
    /// Rules that are the same in every call. They are numbers of the script's text, so they cost
    /// no time.
    const CONSTANTS: &'static [(&'static str, u64)];
    /// The Lua code.
    const CODE: &'static [&'static str];

    /// The keys of this call.
    fn keys(&self) -> Vec<&str>;

    /// The arguments of this call.
    fn arguments(&self) -> Vec<Vec<u8>>;

    /// The whole script. Its keys and arguments become local variables when it is loaded, so names
    /// cost no time.
    #[must_use]
    fn text() -> String {
        let mut lines = Vec::new();
        for (index, name) in (1..).zip(Self::KEYS) {
            lines.push(format!("local {name} = KEYS[{index}]\n"));
        }
        for (index, (name, kind)) in (1..).zip(Self::ARGUMENTS) {
            lines.push(match kind {
                Kind::Text => format!("local {name} = ARGV[{index}]\n"),
                // Lua converts the operands of an addition, in less time than a call of tonumber
                // takes.
                Kind::Number => format!("local {name} = ARGV[{index}] + 0\n"),
                Kind::Flag => format!("local {name} = ARGV[{index}] == '1'\n"),
            });
        }
        let texts = Self::ARGUMENTS.iter().filter(|(name, kind)| {
            // The publisher's record, which may be long.
            matches!(kind, Kind::Text) && *name != "sealed"
        });
        let lengths: Vec<String> = texts.map(|(name, _)| format!("#{name}")).collect();
        if !lengths.is_empty() {
            let lengths = lengths.join(" + ");
            lines.push(format!(
                "if {lengths} > {LONGEST_TEXTS} then return redis.error_reply('ERR too long') end\n"
            ));
        }
        for (name, value) in Self::CONSTANTS {
            lines.push(format!("local {name} = {value}\n"));
        }
        [lines.concat(), Self::CODE.concat()].concat()
    }

    /// The script, ready to be called.
    #[must_use]
    fn script(source: Source) -> Script {
        Script::new(Self::text(), source)
    }

    /// This call of `script`, which [`ScriptCall::script`] returned.
    fn of(self, script: &Script) -> ScriptCommand<'_>;
}

macro_rules! scripts {
    ($(
        $(#[$meta:meta])*
        $name:ident: $code:expr;
        keys { $($key:ident),* $(,)? }
        $(constants { $($constant:ident: $value:expr),* $(,)? })?
        arguments { $($argument:ident: $type:ty),* $(,)? }
    )*) => {$(
        $(#[$meta])*
        #[expect(missing_docs, reason = "each is described where it is used: in the Lua code")]
        pub struct $name<'a> {
            $(pub $key: &'a str,)*
            $(pub $argument: $type,)*
        }

        impl<'a> ScriptCall for $name<'a> {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];
            const ARGUMENTS: &'static [(&'static str, Kind)] =
                &[$((stringify!($argument), <$type as Argument>::KIND)),*];
            const CONSTANTS: &'static [(&'static str, u64)] =
                &[$($((stringify!($constant), $value)),*)?];
            const CODE: &'static [&'static str] = &$code;

            fn keys(&self) -> Vec<&str> {
                vec![$(self.$key),*]
            }

            fn arguments(&self) -> Vec<Vec<u8>> {
                let mut arguments = Vec::with_capacity(Self::ARGUMENTS.len());
                $(self.$argument.write_redis_args(&mut arguments);)*
                arguments
            }

            fn of(self, script: &Script) -> ScriptCommand<'_> {
                let keys = [$(self.$key),*];
                // Only the last key may be empty, and is then left out.
                let keys = keys.strip_suffix(&[""]).unwrap_or(&keys);
                let mut command = script.call(keys.len());
                command.arg(keys);
                $(command.arg(self.$argument);)*
                script.command(command)
            }
        }
    )*};
}

#[expect(clippy::cast_possible_truncation, reason = "a rule is shorter than a million years")]
const fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

scripts! {
    /// Decides whether a submitted code is accepted.
    Verify: [PRECONDITIONS, include_str!("../scripts/verify.lua"), HISTORY];
    keys { state_key, otp_key, history_key }
    constants {
        threshold: THROTTLE.threshold as u64,
        first_block: millis(THROTTLE.first_block),
        longest_block: millis(THROTTLE.longest_block),
        disable_after: THROTTLE.disable_after as u64,
        forget_after_days: THROTTLE.forget_after_days,
        block_margin: millis(BLOCK_MARGIN),
        budget_length: millis(BUDGET),
        longest_lifetime: millis(OtpLifetime::LONGEST),
        longest_text: LONGEST_TEXT,
    }
    arguments {
        checked_nodes: &'a str,
        revision: String,
        asked_at: u64,
        tolerance: u64,
        factor: &'a str,
        caller: &'a str,
        tag: String,
        matches: String,
        period: u32,
        skew: u8,
        most_failures: u32,
        retention: u64,
        most_entries: u32,
        details: String,
    }

    /// Decides whether a code may be delivered.
    Issue: [PRECONDITIONS, include_str!("../scripts/issue.lua"), HISTORY];
    keys { state_key, otp_key, history_key }
    constants {
        most_in_flight: MAXIMUM_CODES_IN_FLIGHT as u64,
        longest_lifetime: millis(OtpLifetime::LONGEST),
        longest_period: LONGEST_PERIOD as u64,
        longest_text: LONGEST_TEXT,
    }
    arguments {
        checked_nodes: &'a str,
        revision: String,
        asked_at: u64,
        tolerance: u64,
        caller: &'a str,
        tag: String,
        step: u64,
        period: u32,
        lifetime: u64,
        interval: u64,
        most_per_hour: u32,
        most_own: u32,
        retention: u64,
        most_entries: u32,
        details: String,
    }

    /// Records what became of a delivery.
    RecordDelivery: [include_str!("../scripts/record_delivery.lua"), HISTORY];
    keys { state_key, history_key }
    constants { longest_text: LONGEST_TEXT }
    arguments {
        caller: &'a str,
        operation: &'a str,
        outcome: &'a str,
        give_back: &'a str,
        asked_at: u64,
        retention: u64,
        most_entries: u32,
        details: String,
    }

    /// Counts one delivery of a realm.
    CountDelivery: [include_str!("../scripts/count_delivery.lua")];
    keys { deliveries_key }
    constants { most_fields: MOST_COUNTS }
    arguments { caller: &'a str, most: u32, most_own: u32 }

    /// Makes a user's record current.
    Publish: [PRELUDE, CLOCK_CHECK, include_str!("../scripts/publish.lua")];
    keys { record_key, state_key, otp_key }
    constants {
        clock_tolerance: millis(PUBLISHERS_CLOCK_TOLERANCE),
        longest_ahead: millis(LONGEST_AHEAD),
    }
    arguments {
        asked_at: u64,
        expected: String,
        revision: String,
        sealed: &'a [u8],
        fresh: bool,
        revoke: bool,
        is_disabled: bool,
        reset: &'a str,
    }

    /// Deletes what sidecars may write of a user and no script of theirs writes.
    CheckUser: [PRELUDE, SPOILT, include_str!("../scripts/check_user.lua")];
    keys { record_key, state_key, otp_key, history_key, log_key }
    constants {
        longest_ahead: millis(LONGEST_AHEAD),
        most_bytes: MOST_BYTES,
        most_fields: MOST_FIELDS,
        record_beginning: BEGINNING_BYTES as u64,
    }
    arguments { most_entries: u64 }

    /// Deletes the counts of a realm if no script of sidecars has written them.
    CheckCounts: [SPOILT, include_str!("../scripts/check_counts.lua")];
    keys { deliveries_key }
    constants { most_bytes: MOST_BYTES }
    arguments { most_fields: u64 }

    /// Confirms that a master of a cluster was not flushed during a fill.
    ConfirmNode: [PRELUDE, CLOCK_CHECK, include_str!("../scripts/confirm_node.lua")];
    keys { fill_key }
    constants { clock_tolerance: millis(PUBLISHERS_CLOCK_TOLERANCE) }
    arguments { asked_at: u64, node: &'a str, was_empty: bool, fill_id: &'a str }

    /// Declares a realm complete.
    CompleteFill: [PRELUDE, CLOCK_CHECK, CHECKED_NODES, include_str!("../scripts/complete_fill.lua")];
    keys { meta_key }
    constants {
        clock_tolerance: millis(PUBLISHERS_CLOCK_TOLERANCE),
        longest_ahead: millis(LONGEST_AHEAD),
    }
    arguments {
        asked_at: u64,
        node: &'a str,
        was_empty: bool,
        fill_id: &'a str,
        other_nodes: String,
    }

    /// Ends a write of the publisher with a number.
    NumberWrite: [PRELUDE, include_str!("../scripts/number_write.lua")];
    keys { number_key }
    arguments { node: &'a str, epoch: &'a str, starts: bool }

    /// Confirms that a node has kept every write up to a number.
    ConfirmNumber: [PRELUDE, CLOCK_CHECK, include_str!("../scripts/confirm_number.lua")];
    keys { number_key }
    constants { clock_tolerance: millis(PUBLISHERS_CLOCK_TOLERANCE) }
    arguments { asked_at: u64, node: &'a str, epoch: &'a str, number: u64 }

    /// Makes nodes that have kept every write the checked ones.
    AcceptNodes: [PRELUDE, CHECKED_NODES, include_str!("../scripts/accept_nodes.lua")];
    keys { meta_key }
    constants { longest_ahead: millis(LONGEST_AHEAD) }
    arguments { node: &'a str, checked_nodes: String }

    /// Writes the mark of the operator that owns the installation's data.
    ClaimOwner: [PRELUDE, include_str!("../scripts/claim_owner.lua")];
    keys { owner_key }
    constants { lifetime: millis(OWNER_LIFETIME) }
    arguments { lineage: &'a str, number: u64, replaced: &'a str }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_arguments_become_local_variables_in_the_order_in_which_they_are_passed() {
        let text = Publish::text();
        for line in [
            "local record_key = KEYS[1]\n",
            "local otp_key = KEYS[3]\n",
            "local sealed = ARGV[4]\n",
            "local fresh = ARGV[5] == '1'\n",
        ] {
            assert!(text.contains(line), "{line}");
        }
        assert!(Verify::text().contains("local skew = ARGV[10] + 0\n"));
        assert!(Verify::text().contains("local threshold = 5\n"));
        let call = Publish {
            record_key: "record",
            state_key: "state",
            otp_key: "otp",
            asked_at: 5,
            expected: String::new(),
            revision: "7".to_owned(),
            sealed: b"sealed",
            fresh: true,
            revoke: false,
            is_disabled: false,
            reset: "now",
        };
        assert_eq!(call.keys(), ["record", "state", "otp"]);
        assert_eq!(
            call.arguments(),
            ["5", "", "7", "sealed", "1", "0", "0", "now"]
                .map(|argument| argument.as_bytes().to_vec())
        );
    }

    #[test]
    fn a_script_refuses_long_texts_before_it_does_anything_with_them() {
        let text = Verify::text();
        let bound = text.find("#matches + #details > 32768 then return").unwrap();
        assert!(bound < text.find("redis.call").unwrap());
        assert!(!Publish::text().contains("#sealed"));
    }

    #[test]
    fn the_scripts_of_the_previous_release_are_those_that_its_sidecars_call() {
        // A sidecar calls a script by the SHA-1 of its text, so one changed byte is another script.
        let hashes: Vec<String> =
            of_sidecars().iter().map(|script| script.hash().to_owned()).collect();
        assert_eq!(
            hashes[4..],
            [
                "67039bd67e7332f5f175659c47b176c8f65968be",
                "e2c9793263f5b5eb9d8c57da0fb8953e0d79289f",
                "6563a057f14fedda3f3af618cb0e0ccfd3d9fd30",
                "bbf41082e4e2d6b87bd9211998c2c81942662fbd",
            ]
        );
    }

    #[test]
    fn scripts_use_names_only() {
        for code in [Verify::CODE, Issue::CODE, RecordDelivery::CODE, CountDelivery::CODE] {
            assert!(!code.concat().contains("ARGV") && !code.concat().contains("KEYS["));
        }
        for code in [
            Publish::CODE,
            CheckUser::CODE,
            CheckCounts::CODE,
            ConfirmNode::CODE,
            CompleteFill::CODE,
            NumberWrite::CODE,
            ConfirmNumber::CODE,
            AcceptNodes::CODE,
            ClaimOwner::CODE,
        ] {
            assert!(!code.concat().contains("ARGV") && !code.concat().contains("KEYS["));
        }
    }
}
