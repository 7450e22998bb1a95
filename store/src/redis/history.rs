//! Reads a user's history.

use std::collections::HashMap;

use redis::Value;
use twofactor_core::audit::Entry;
use twofactor_core::names::{Pseudonym, UserNames};
use twofactor_core::time::UnixMillis;

use super::{RedisStore, read};
use crate::StoreError;

impl RedisStore {
    /// Reads the entries, the oldest first. Sidecars of version 0.1 have written theirs to a
    /// stream.
    pub(crate) async fn history(&self, user: &Pseudonym) -> Result<Vec<Entry>, StoreError> {
        let UserNames { history, log, .. } = self.names.user(user);
        let mut pipeline = redis::pipe();
        pipeline.cmd("XRANGE").arg(&log).arg("-").arg("+");
        pipeline.cmd("LRANGE").arg(&history).arg(0).arg(-1);
        let mut entries = Vec::new();
        // Sidecars may write anything there, so what is no entry is left out.
        for (node, _) in self.parts(std::iter::once(user)).await? {
            let replies = self.send_to_spoilt_keys(&node, &mut pipeline).await?;
            let [stream, list] = replies.as_slice() else { return Err(StoreError::Protocol) };
            entries.extend(self::entries(stream, list));
        }
        Ok(entries)
    }
}

impl RedisStore {
    /// Shortens histories to their last `keep` entries.
    pub(crate) async fn shorten_histories(
        &self,
        users: &[Pseudonym],
        keep: u16,
    ) -> Result<(), StoreError> {
        // An empty range deletes the list.
        let (first, last) = if keep == 0 { (1, 0) } else { (-i32::from(keep), -1) };
        for (node, positions) in self.parts(users.iter()).await? {
            let mut pipeline = redis::pipe();
            for position in positions {
                let UserNames { history, log, .. } = self.names.user(&users[position]);
                pipeline.cmd("LTRIM").arg(history).arg(first).arg(last);
                pipeline.cmd("XTRIM").arg(log).arg("MAXLEN").arg(keep);
            }
            self.send_to_spoilt_keys(&node, &mut pipeline).await?;
        }
        Ok(())
    }
}

/// Parses the stream and the list of a history, and sorts the entries by time.
pub(super) fn entries(stream: &Value, list: &Value) -> Vec<Entry> {
    let of_stream = values(stream).filter_map(|entry| {
        let (id, fields) = read(entry).ok()?;
        of_stream(&String::from_utf8(id).ok()?, fields)
    });
    let of_list = values(list)
        .filter_map(|entry| of_list(&String::from_utf8_lossy(&read::<Vec<u8>>(entry).ok()?)));
    let mut entries: Vec<Entry> = of_stream.chain(of_list).collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

/// The elements of a reply, none if it has no elements.
fn values(reply: &Value) -> impl Iterator<Item = &Value> {
    let elements: &[Value] = match reply {
        Value::Array(elements) => elements,
        _ => &[],
    };
    elements.iter()
}

/// Reads an entry of the list. Its words are those of the release that wrote it, so any word is
/// accepted.
fn of_list(text: &str) -> Option<Entry> {
    let mut lines = text.splitn(4, '\n');
    let mut words = lines.next()?.split(' ');
    let mut word = || words.next().map(str::to_owned);
    let (at, operation, outcome, caller, channel) = (word()?, word()?, word()?, word()?, word()?);
    let mut line = || lines.next().filter(|text| !text.is_empty()).map(str::to_owned);
    Some(Entry {
        at: UnixMillis::new(at.parse().ok()?),
        operation,
        outcome,
        caller,
        channel,
        address: line(),
        user_agent: line(),
        repeated: line(),
    })
}

/// Reads an entry of the stream.
fn of_stream(id: &str, mut fields: HashMap<String, String>) -> Option<Entry> {
    Some(Entry {
        at: UnixMillis::new(id.split('-').next()?.parse().ok()?),
        operation: fields.remove("operation")?,
        outcome: fields.remove("outcome")?,
        caller: fields.remove("caller")?,
        channel: fields.remove("channel")?,
        address: fields.remove("address"),
        user_agent: fields.remove("user_agent"),
        repeated: fields.remove("repeated"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_list_is_read() {
        let text = "1798000000000 verify accepted kms app\n203.0.113.7\na program\nverify/used=3";
        let read = of_list(text).unwrap();
        assert_eq!(read.at, UnixMillis::new(1_798_000_000_000));
        assert_eq!([read.operation, read.outcome], ["verify", "accepted"]);
        assert_eq!([read.caller, read.channel], ["kms", "app"]);
        assert_eq!(read.address.as_deref(), Some("203.0.113.7"));
        assert_eq!(read.user_agent.as_deref(), Some("a program"));
        assert_eq!(read.repeated.as_deref(), Some("verify/used=3"));
        let read = of_list("1798000000000 verify wrong kms app\n\n").unwrap();
        assert_eq!((read.address, read.user_agent, read.repeated), (None, None, None));
        for wrong in ["", "x verify wrong kms app", "1798000000000 verify wrong kms"] {
            assert_eq!(of_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_entry_of_a_stream_is_read_under_the_words_of_its_release() {
        let fields = [
            ("operation", "delivery"),
            ("outcome", "an-old-word"),
            ("caller", "kms"),
            ("channel", "email"),
            ("repeated", "delivery/an-old-word=3"),
        ];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let read = of_stream("1798000000000-0", fields).unwrap();
        assert_eq!(read.at, UnixMillis::new(1_798_000_000_000));
        assert_eq!(read.outcome, "an-old-word");
        assert_eq!(read.repeated.as_deref(), Some("delivery/an-old-word=3"));
    }
}
