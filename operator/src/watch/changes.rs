//! Turns the events of kube's watcher into changes, so that every watch has to handle only objects
//! that exist and objects that were deleted.
//!
//! A broken watch can miss deletions. kube then lists all objects again, and an object that is
//! known but not in the new list is reported as deleted. For this, only the objects' keys are
//! remembered.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::hash::Hash;

use futures_util::StreamExt;
use kube::runtime::watcher::Event;

use super::{Events, Seen};

/// A change that a watch has to handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<O, K> {
    /// The object was listed, created or changed. The key is the same one in every change, so that
    /// keeping it costs no memory.
    Applied(K, O),
    /// The object with this key was deleted.
    Deleted(K),
    /// Every list has been complete or refused at least once, and one has just been so.
    Synced,
}

/// The changes of one or more lists of objects. `K` is the key of an object.
pub struct Changes<O, K> {
    events: Events<O>,
    key: fn(&O) -> K,
    lists: Lists<K>,
    /// Changes of the last event that were not taken yet.
    pending: VecDeque<Change<O, K>>,
}

impl<O, K: Clone + Eq + Hash> Changes<O, K> {
    /// Reads `events`, which come from as many lists as it has streams.
    pub fn new(events: Events<O>, key: fn(&O) -> K) -> Self {
        let lists = Lists::new(events.len());
        Self { events, key, lists, pending: VecDeque::new() }
    }

    /// Waits for the next change; nothing if the watch has ended. No change is lost if the call is
    /// cancelled.
    pub async fn next(&mut self) -> Option<Change<O, K>> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Some(change);
            }
            match self.events.next().await? {
                (list, Seen::Event(event)) => {
                    self.pending.extend(self.lists.changes(list, event, self.key));
                }
                (list, Seen::Refused) => self.pending.extend(self.lists.refused(list)),
            }
        }
    }

    /// Whether a list is incomplete at the moment, so that known objects may be missing or deleted.
    pub fn is_listing(&self) -> bool {
        self.lists.0.iter().any(|list| list.listing.is_some() || !list.complete)
    }

    /// The number of objects that exist.
    pub fn known(&self) -> usize {
        self.lists.0.iter().map(|list| list.known.len()).sum()
    }
}

/// The keys of every list.
struct Lists<K>(Vec<List<K>>);

struct List<K> {
    /// Keys of the objects that exist.
    known: HashSet<K>,
    /// Keys that the list in progress has contained so far.
    listing: Option<HashSet<K>>,
    /// Whether the list has been complete or refused once.
    complete: bool,
}

impl<K: Clone + Eq + Hash> Lists<K> {
    fn new(lists: usize) -> Self {
        let list = || List { known: HashSet::new(), listing: None, complete: false };
        Self(std::iter::repeat_with(list).take(lists).collect())
    }

    /// Records that a list is refused. Nothing waits for it any longer, and what is known of its
    /// objects stays.
    fn refused<O>(&mut self, list: usize) -> Option<Change<O, K>> {
        let List { listing, complete, .. } = self.0.get_mut(list)?;
        *listing = None;
        let was_complete = std::mem::replace(complete, true);
        (!was_complete && self.0.iter().all(|list| list.complete)).then_some(Change::Synced)
    }

    /// Records an event of a list and returns the changes that follow from it.
    fn changes<O>(
        &mut self,
        list: usize,
        event: Event<O>,
        key: impl Fn(&O) -> K,
    ) -> Vec<Change<O, K>> {
        let Some(List { known, listing, complete }) = self.0.get_mut(list) else {
            return Vec::new();
        };
        match event {
            // Also after an error in the middle of a list. What that list has contained is known.
            Event::Init => {
                *listing = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key(&object);
                let key = known.get(&key).cloned().unwrap_or(key);
                if let Some(listing) = listing {
                    listing.insert(key.clone());
                }
                known.insert(key.clone());
                vec![Change::Applied(key, object)]
            }
            Event::Delete(object) => {
                let key = key(&object);
                if let Some(listing) = listing {
                    listing.remove(&key);
                }
                known.remove(&key);
                vec![Change::Deleted(key)]
            }
            Event::InitDone => {
                let listed = listing.take().unwrap_or_default();
                let missing = known.difference(&listed).cloned().map(Change::Deleted);
                let mut changes: Vec<_> = missing.collect();
                *known = listed;
                *complete = true;
                if self.0.iter().all(|list| list.complete) {
                    changes.push(Change::Synced);
                }
                changes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds events to `lists` and returns the changes as texts. An event is `LIST init`,
    /// `LIST listed KEY`, `LIST done`, `LIST applied KEY`, `LIST deleted KEY` or `LIST refused`.
    fn changes(lists: usize, events: &[&str]) -> Vec<String> {
        let mut lists = Lists::new(lists);
        let mut found = Vec::new();
        for text in events {
            let mut words = text.split(' ');
            let list = words.next().unwrap().parse().unwrap();
            if text.ends_with("refused") {
                found.extend(lists.refused::<&str>(list).map(|_| "synced".to_owned()));
                continue;
            }
            let event = match (words.next().unwrap(), words.next().unwrap_or_default()) {
                ("init", _) => Event::Init,
                ("done", _) => Event::InitDone,
                ("listed", key) => Event::InitApply(key),
                ("applied", key) => Event::Apply(key),
                ("deleted", key) => Event::Delete(key),
                (other, _) => panic!("unknown event {other}"),
            };
            let mut changes: Vec<String> = lists
                .changes(list, event, |key| (*key).to_owned())
                .into_iter()
                .map(|change| match change {
                    Change::Applied(key, _) => format!("+{key}"),
                    Change::Deleted(key) => format!("-{key}"),
                    Change::Synced => "synced".to_owned(),
                })
                .collect();
            // Deletions of one event have no order.
            changes.sort();
            found.extend(changes);
        }
        found
    }

    #[test]
    fn objects_are_applied_as_they_are_listed_and_missing_ones_are_deleted() {
        let first = ["0 init", "0 listed a", "0 listed b", "0 done"];
        let table: &[(&str, &[&str], &[&str])] = &[
            ("a first list", &[], &[]),
            ("changes after it", &["0 applied c", "0 applied a"], &["+c", "+a"]),
            ("a deletion, and the object again", &["0 deleted a", "0 applied a"], &["-a", "+a"]),
            (
                "another list with one missing",
                &["0 init", "0 listed b", "0 done"],
                &["+b", "-a", "synced"],
            ),
            ("an empty list", &["0 init", "0 done"], &["-a", "-b", "synced"]),
            (
                "an object that came after the first list and is missing in the next",
                &["0 applied c", "0 init", "0 listed a", "0 listed b", "0 done"],
                &["+c", "+a", "+b", "-c", "synced"],
            ),
            (
                "an object that was deleted before the next list is not deleted twice",
                &["0 deleted b", "0 init", "0 listed a", "0 done"],
                &["-b", "+a", "synced"],
            ),
            (
                "a deletion during a list",
                &["0 init", "0 listed a", "0 listed b", "0 deleted a", "0 done"],
                &["+a", "+b", "-a", "synced"],
            ),
            (
                "a change during a list",
                &["0 init", "0 listed a", "0 applied b", "0 done"],
                &["+a", "+b", "synced"],
            ),
            (
                "an error during a list, which begins again",
                &["0 init", "0 listed c", "0 init", "0 listed a", "0 listed b", "0 done"],
                &["+c", "+a", "+b", "-c", "synced"],
            ),
        ];
        for (case, events, expected) in table {
            let all: Vec<&str> = first.iter().chain(*events).copied().collect();
            let found = changes(1, &all);
            assert_eq!(found[..3], ["+a", "+b", "synced"], "{case}");
            assert_eq!(found[3..], **expected, "{case}");
        }
    }

    #[test]
    fn several_lists_are_synced_when_each_has_been_complete_once() {
        let events = ["0 init", "1 init", "0 listed a", "0 done", "1 listed b", "1 done"];
        assert_eq!(changes(2, &events), ["+a", "+b", "synced"]);
        let again = ["0 init", "0 done"];
        let all: Vec<&str> = events.iter().chain(&again).copied().collect();
        assert_eq!(changes(2, &all)[3..], ["-a", "synced"], "the other list keeps its objects");
    }

    #[test]
    fn nothing_waits_for_a_refused_list_and_its_objects_stay() {
        let refused = ["0 init", "0 listed a", "0 done", "1 init", "1 refused", "1 refused"];
        assert_eq!(changes(2, &refused), ["+a", "synced"]);
        let later = ["0 init", "0 refused", "1 init", "1 listed b", "1 done"];
        let all: Vec<&str> = refused.iter().chain(&later).copied().collect();
        assert_eq!(changes(2, &all)[2..], ["+b", "synced"]);
    }

    #[test]
    fn a_list_that_broke_off_before_its_end_is_not_synced() {
        assert_eq!(changes(1, &["0 init", "0 listed a", "0 init"]), ["+a"]);
    }
}
