//! Feeds random values to every parser of what is read from Redis.

use redis::Value;
use twofactor_core::key::RealmKey;
use twofactor_core::names::Pseudonym;
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;

use super::*;

/// Number of random documents, together.
const DOCUMENTS: u64 = 1_000_000;

/// A generator of numbers that begins alike in every run (`SplitMix64`).
struct Random(u64);

/// Pieces that parsers look for.
const PIECES: [&str; 24] = [
    "",
    " ",
    "\n",
    "=",
    ":",
    ".",
    "-",
    "0",
    "1",
    "7",
    "99999999999999999999",
    "-1",
    "nan",
    "inf",
    "1e308",
    "guard:",
    "kms",
    "run_id:",
    "master_replid:",
    "used_memory:",
    "maxmemory:",
    "\r\n",
    "1798000000000",
    "verify accepted kms app",
];

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % bound as u64).unwrap()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.below(6) {
            if self.below(4) == 0 {
                bytes.extend(self.number().to_le_bytes().iter().take(self.below(9)));
            } else {
                bytes.extend(PIECES[self.below(PIECES.len())].bytes());
            }
        }
        bytes
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => Value::Nil,
            1 => Value::Int(self.number().cast_signed()),
            2 | 3 => Value::BulkString(self.bytes()),
            4 => Value::SimpleString(self.text()),
            _ => {
                let length = self.below(6);
                Value::Array((0..length).map(|_| self.value(depth - 1)).collect())
            }
        }
    }
}

#[test]
fn no_reply_of_redis_causes_a_panic() {
    let mut random = Random(1);
    let realm = "a-realm".parse().unwrap();
    let key = format!("1:{}=", "A".repeat(43));
    let keys = RealmKey::from_text(&key).unwrap().keys(&realm);
    for number in 0..DOCUMENTS {
        match number % 8 {
            0 => drop(publish::published(&random.value(2), &random.value(1))),
            1 => drop(checked_node(&format!("guard:{}", random.text()), &random.text())),
            2 => drop(history::entries(&random.value(3), &random.value(2))),
            3 => drop(usage::parse(&random.text())),
            4 => drop(node_status::node_identity(&random.text(), &random.text())),
            5 => drop(decide::Answer::from_redis_value(random.value(2))),
            6 => drop(
                read::<user_checks::Reply>(&random.value(2)).map(|it| user_checks::evaluate(&it)),
            ),
            _ => {
                let user = Pseudonym::from_bytes([7; 16]);
                assert!(UserRecord::open(&keys, user, &random.bytes()).is_err());
                assert!(RealmRecord::open(&keys, &random.bytes()).is_err());
            }
        }
    }
}
