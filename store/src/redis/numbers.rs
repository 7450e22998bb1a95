//! Remembers the number of a publisher's last write on each node, with which a node that was
//! restarted or promoted proves that it has kept all of them. No I/O.
//!
//! A server that loses writes loses the last ones. Each write of a publisher ends with a number
//! that rises, so a node that has the last number has every write. The numbers belong to an epoch,
//! a random id, because another publisher may count as well, and to the identities of the nodes: a
//! node that is not the checked one gets no number.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use twofactor_core::decision::Undecided;

use crate::StoreError;

/// A node, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenNode {
    pub(super) identity: String,
    /// In a cluster, the node's slots. Keys that have moved to a node are not among its numbered
    /// writes.
    pub(super) slots: String,
}

/// The nodes by the tags of the keys with their numbers.
pub(super) type SeenNodes = BTreeMap<String, SeenNode>;

/// The last acknowledged number on each node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) epoch: String,
    nodes: SeenNodes,
    last: BTreeMap<String, u64>,
}

/// What a look at the nodes means for the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The nodes are the ones that the numbers belong to.
    None,
    /// Nothing is numbered.
    Unnumbered,
    /// A node is another process or has another role, and has to confirm these numbers.
    Other(Numbers),
    /// A node is another process or has another role, and there are no numbers that could prove
    /// that it lost nothing.
    Unprovable,
}

#[derive(Debug, Default)]
enum State {
    /// Writes are not numbered: no node was checked yet, or the realm is being filled.
    #[default]
    Unnumbered,
    /// Each write is numbered.
    Numbered(Numbers),
    /// The nodes have changed. Until they have confirmed the numbers, no write counts.
    Suspended(Numbers),
}

/// The numbers of one realm.
#[derive(Debug, Default)]
pub(super) struct WriteNumbers(Mutex<State>);

impl Numbers {
    /// Returns the node with a tag.
    pub(super) fn node(&self, tag: &str) -> Option<&SeenNode> {
        self.nodes.get(tag)
    }

    /// Returns the last acknowledged number on the node with a tag.
    pub(super) fn last(&self, tag: &str) -> u64 {
        self.last.get(tag).copied().unwrap_or_default()
    }

    /// Whether there is a number on every node.
    fn is_started(&self) -> bool {
        self.nodes.keys().all(|tag| self.last(tag) > 0)
    }

    /// Whether nodes could confirm the numbers: there are as many, with the same slots.
    fn fit(&self, nodes: &SeenNodes) -> bool {
        self.is_started()
            && self.nodes.len() == nodes.len()
            && nodes
                .iter()
                .all(|(tag, seen)| self.node(tag).is_some_and(|node| node.slots == seen.slots))
    }
}

/// The identities of nodes, ascending and separated by spaces.
fn identities_of(nodes: &SeenNodes) -> String {
    let mut identities: Vec<&str> = nodes.values().map(|node| node.identity.as_str()).collect();
    identities.sort_unstable();
    identities.join(" ")
}

impl WriteNumbers {
    /// Forgets the numbers, because the realm is filled or a node has lost writes.
    pub(super) fn forget(&self) {
        *self.state() = State::Unnumbered;
    }

    /// Forgets the numbers of an epoch, because another publisher counts.
    pub(super) fn forget_epoch(&self, epoch: &str) {
        let mut state = self.state();
        if matches!(&*state, State::Numbered(numbers) if numbers.epoch == epoch) {
            *state = State::Unnumbered;
        }
    }

    /// Forgets the numbers unless they belong to the nodes with these identities, which are
    /// ascending and separated by spaces.
    pub(super) fn forget_unless_on(&self, identities: &str) {
        let mut state = self.state();
        let is_on = matches!(&*state, State::Numbered(numbers) if identities_of(&numbers.nodes) == identities);
        if !is_on {
            *state = State::Unnumbered;
        }
    }

    /// Begins an epoch. Its numbers prove something once there is one on every node.
    pub(super) fn start(&self, epoch: &str, nodes: SeenNodes) -> Numbers {
        let numbers = Numbers { epoch: epoch.to_owned(), nodes, last: BTreeMap::new() };
        *self.state() = State::Numbered(numbers.clone());
        numbers
    }

    /// Returns the numbers that a write has to continue, or nothing if writes are not numbered.
    ///
    /// # Errors
    /// If the nodes have changed.
    pub(super) fn current(&self) -> Result<Option<Numbers>, StoreError> {
        match &*self.state() {
            State::Unnumbered => Ok(None),
            State::Numbered(numbers) => Ok(Some(numbers.clone())),
            State::Suspended(_) => Err(Undecided::UncheckedNode.into()),
        }
    }

    /// Records a number that Redis has acknowledged for the write of `numbers`.
    ///
    /// # Errors
    /// If the nodes have changed in between. The write may be lost then.
    pub(super) fn record(
        &self,
        numbers: &Numbers,
        tag: &str,
        number: u64,
    ) -> Result<(), StoreError> {
        match &mut *self.state() {
            State::Numbered(current) if current.epoch == numbers.epoch => {
                if current.node(tag) != numbers.node(tag) {
                    return Err(Undecided::UncheckedNode.into());
                }
                let last = current.last.entry(tag.to_owned()).or_default();
                *last = number.max(*last);
                Ok(())
            }
            State::Suspended(current) if current.epoch == numbers.epoch => {
                Err(Undecided::UncheckedNode.into())
            }
            // A later epoch covers all writes before its first number, and this one is among them.
            _ => Ok(()),
        }
    }

    /// Compares the nodes with those that the numbers belong to. If they have changed, no write
    /// counts until [`WriteNumbers::resume`].
    pub(super) fn see(&self, nodes: &SeenNodes) -> Change {
        let mut state = self.state();
        let numbers = match &*state {
            State::Unnumbered => return Change::Unnumbered,
            State::Numbered(numbers) | State::Suspended(numbers) => numbers.clone(),
        };
        if matches!(&*state, State::Numbered(_)) {
            if numbers.nodes == *nodes && numbers.is_started() {
                return Change::None;
            }
            if identities_of(&numbers.nodes) == identities_of(nodes) {
                // Slots have moved, or an epoch was not started on every node. Nothing is lost.
                *state = State::Unnumbered;
                return Change::Unnumbered;
            }
        }
        if !numbers.fit(nodes) {
            *state = State::Unnumbered;
            return Change::Unprovable;
        }
        *state = State::Suspended(numbers.clone());
        Change::Other(numbers)
    }

    /// Continues an epoch on nodes that have confirmed its numbers. Returns whether it could.
    pub(super) fn resume(&self, epoch: &str, nodes: SeenNodes) -> bool {
        let mut state = self.state();
        match std::mem::take(&mut *state) {
            State::Suspended(numbers) if numbers.epoch == epoch => {
                *state = State::Numbered(Numbers { nodes, ..numbers });
                true
            }
            other => {
                *state = other;
                false
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(nodes: &[(&str, &str, &str)]) -> SeenNodes {
        let seen = |(tag, identity, slots): &(&str, &str, &str)| {
            let (identity, slots) = ((*identity).to_owned(), (*slots).to_owned());
            ((*tag).to_owned(), SeenNode { identity, slots })
        };
        nodes.iter().map(seen).collect()
    }

    fn one(identity: &str) -> SeenNodes {
        nodes(&[("realm", identity, "")])
    }

    /// Numbers with the last number 7 on node A.
    fn numbered() -> WriteNumbers {
        let numbers = WriteNumbers::default();
        numbers.start("epoch", one("A"));
        let current = numbers.current().unwrap().unwrap();
        numbers.record(&current, "realm", 7).unwrap();
        numbers
    }

    #[test]
    fn an_unchanged_node_needs_no_proof_and_another_one_the_highest_number() {
        let numbers = numbered();
        let current = numbers.current().unwrap().unwrap();
        // Answers may arrive in another order than Redis has given the numbers.
        numbers.record(&current, "realm", 6).unwrap();
        assert_eq!(numbers.see(&one("A")), Change::None);
        let Change::Other(asked) = numbers.see(&one("B")) else { panic!() };
        assert_eq!(asked.last("realm"), 7);
    }

    #[test]
    fn no_write_counts_between_the_change_of_a_node_and_its_confirmation() {
        let numbers = numbered();
        let before = numbers.current().unwrap().unwrap();
        let Change::Other(asked) = numbers.see(&one("B")) else { panic!() };
        assert!(numbers.current().is_err());
        assert!(
            numbers.record(&before, "realm", 8).is_err(),
            "the former node has acknowledged it"
        );
        // A node that seems to be the former one again must confirm the numbers too.
        assert_eq!(numbers.see(&one("A")), Change::Other(asked.clone()));
        assert!(numbers.resume(&asked.epoch, one("B")));
        assert!(numbers.record(&before, "realm", 8).is_err(), "late, from the former node");
        let after = numbers.current().unwrap().unwrap();
        assert_eq!((after.last("realm"), after.node("realm").unwrap().identity.as_str()), (7, "B"));
        assert!(numbers.record(&after, "realm", 8).is_ok());
        assert!(!numbers.resume(&asked.epoch, one("C")), "nothing is suspended");
    }

    #[test]
    fn what_was_never_numbered_cannot_be_proved() {
        let numbers = WriteNumbers::default();
        assert_eq!(numbers.see(&one("A")), Change::Unnumbered);
        numbers.start("epoch", one("A"));
        // The first number was not acknowledged.
        assert_eq!(numbers.see(&one("B")), Change::Unprovable);
        assert_eq!(numbers.see(&one("B")), Change::Unnumbered);
        numbers.start("epoch", one("A"));
        assert_eq!(numbers.see(&one("A")), Change::Unnumbered, "it is started again");
    }

    #[test]
    fn a_fill_ends_the_numbers_and_its_own_cover_writes_of_before() {
        let numbers = numbered();
        let before = numbers.current().unwrap().unwrap();
        numbers.forget();
        assert!(numbers.record(&before, "realm", 8).is_ok());
        assert!(numbers.current().unwrap().is_none());
        numbers.start("another", one("A"));
        assert!(numbers.record(&before, "realm", 9).is_ok());
        let after = numbers.current().unwrap().unwrap();
        assert_eq!(after.last("realm"), 0, "numbers of another epoch prove nothing");
        numbers.forget_epoch("epoch");
        assert!(numbers.current().unwrap().is_some());
        numbers.forget_epoch("another");
        assert!(numbers.current().unwrap().is_none());
    }

    #[test]
    fn keys_that_have_moved_to_a_replaced_node_cannot_be_proved() {
        let before = nodes(&[("0", "A", "0-99"), ("1", "B", "100-199")]);
        let started = || {
            let numbers = WriteNumbers::default();
            numbers.start("epoch", before.clone());
            let current = numbers.current().unwrap().unwrap();
            for tag in ["0", "1"] {
                numbers.record(&current, tag, 1).unwrap();
            }
            numbers
        };
        let promoted = nodes(&[("0", "A", "0-99"), ("1", "C", "100-199")]);
        assert!(matches!(started().see(&promoted), Change::Other(_)));
        let moved = nodes(&[("0", "A", "0-89"), ("1", "B", "90-199")]);
        assert_eq!(started().see(&moved), Change::Unnumbered, "both nodes are still there");
        let both = nodes(&[("0", "A", "0-89"), ("1", "C", "90-199")]);
        assert_eq!(started().see(&both), Change::Unprovable);
        let another = nodes(&[("0", "A", "0-99"), ("1", "B", "100-149"), ("2", "D", "150-199")]);
        assert_eq!(started().see(&another), Change::Unprovable);
    }
}
