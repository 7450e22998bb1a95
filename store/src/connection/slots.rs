//! Computes the slot of a key and parses `CLUSTER SLOTS`: which node of a cluster has which keys.

use redis::{FromRedisValue, Value};

use crate::url::Address;

/// Number of slots of a cluster.
const SLOTS: u16 = 16384;

/// Returns the slot of a key. Only the text between the first opening brace and the next closing
/// one counts, unless it is empty.
pub(crate) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    checksum(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS
}

/// Computes the CRC-16 with the polynomial 0x1021, as the specification of Redis Cluster requires.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ (u16::from(*byte) << 8), |sum, _| {
            if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 }
        })
    })
}

/// A range of slots, and the nodes that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) master: Address,
    pub(crate) replicas: Vec<Address>,
}

/// Parses the reply of `asked` to `CLUSTER SLOTS` into ascending ranges. Returns nothing if it is
/// something else, or no slot is assigned.
pub(crate) fn ranges(answer: Value, asked: &Address) -> Option<Vec<Range>> {
    let lines = Vec::<Vec<Value>>::from_redis_value(answer).ok()?;
    let mut ranges =
        lines.into_iter().map(|line| range(line, asked)).collect::<Option<Vec<_>>>()?;
    ranges.sort_by_key(|range| range.first);
    (!ranges.is_empty()).then_some(ranges)
}

fn range(line: Vec<Value>, asked: &Address) -> Option<Range> {
    let mut parts = line.into_iter();
    let first = u16::from_redis_value(parts.next()?).ok()?;
    let last = u16::from_redis_value(parts.next()?).ok()?;
    let mut nodes = parts.map(|node| address(node, asked));
    Some(Range { first, last, master: nodes.next()??, replicas: nodes.flatten().collect() })
}

/// A node that does not know its own address has the address of the node that was asked.
fn address(node: Value, asked: &Address) -> Option<Address> {
    let mut parts = Vec::<Value>::from_redis_value(node).ok()?.into_iter();
    let host = Option::<String>::from_redis_value(parts.next()?).ok()?;
    let host =
        host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.host.clone());
    let port = u16::from_redis_value(parts.next()?).ok().filter(|port| *port > 0)?;
    Some(Address { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(checksum(b"123456789"), 0x31c3);
        assert_eq!(slot_of("foo{bar}{zap}"), slot_of("bar"));
        assert_eq!(slot_of("foo{{bar}}zap"), slot_of("{bar"));
        assert_eq!(slot_of("foo{}{bar}"), checksum(b"foo{}{bar}") % SLOTS);
        assert_ne!(slot_of("foo{}{bar}"), slot_of("bar"));
    }

    #[test]
    fn replies_to_cluster_slots_are_parsed() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |host: Value, port| {
            Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])])
        };
        let answer = Value::Array(vec![
            Value::Array(vec![
                Value::Int(9),
                Value::Int(16383),
                node(text("10.0.0.2"), 7001),
                node(text("?"), 7002),
            ]),
            Value::Array(vec![Value::Int(0), Value::Int(8), node(Value::Nil, 7000)]),
        ]);
        let asked = Address { host: "seed".to_owned(), port: 1 };
        let address = |host: &str, port| Address { host: host.to_owned(), port };
        assert_eq!(
            ranges(answer, &asked).unwrap(),
            [
                Range { first: 0, last: 8, master: address("seed", 7000), replicas: vec![] },
                Range {
                    first: 9,
                    last: 16383,
                    master: address("10.0.0.2", 7001),
                    replicas: vec![address("seed", 7002)]
                },
            ]
        );
        assert_eq!(ranges(Value::Array(vec![]), &asked), None);
        assert_eq!(ranges(Value::Okay, &asked), None);
    }
}
