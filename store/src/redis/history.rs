//! Reads a user's history.

use std::collections::HashMap;

use twofactor_core::audit::Entry;
use twofactor_core::names::{Pseudonym, UserNames};
use twofactor_core::time::UnixMillis;

use super::RedisStore;
use crate::StoreError;

impl RedisStore {
    /// Reads the entries, the oldest first. Sidecars of version 0.1 have written theirs to a
    /// stream.
    pub(crate) async fn history(&self, user: &Pseudonym) -> Result<Vec<Entry>, StoreError> {
        let UserNames { history, log, .. } = self.names.user(user);
        let stream: Vec<(String, HashMap<String, String>)> =
            self.query(&log, redis::cmd("XRANGE").arg(&log).arg("-").arg("+")).await?;
        let list: Vec<String> =
            self.query(&history, redis::cmd("LRANGE").arg(&history).arg(0).arg(-1)).await?;
        let of_stream = stream.into_iter().map(|(id, fields)| of_stream(&id, fields));
        let mut entries: Vec<Entry> = of_stream
            .chain(list.iter().map(|text| of_list(text)))
            .collect::<Option<_>>()
            .ok_or(StoreError::Protocol)?;
        entries.sort_by_key(|entry| entry.at);
        Ok(entries)
    }
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
