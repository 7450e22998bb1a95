//! Checks realms on nodes that were restarted or promoted: those that prove that they have kept
//! every write of the publisher become checked nodes at once, for all realms together.

use std::sync::Arc;

use rand_core::CryptoRng;
use twofactor_core::decision::Undecided;
use twofactor_core::names::RealmNames;

use super::node_status::{FoundMaster, Nodes, confirmed};
use super::numbers::{Change, Numbers, SeenNode, SeenNodes};
use super::scripts::{self, ScriptCall};
use super::{Answer, BATCH_TIMEOUT, OPERATION_TIMEOUT, RedisStore};
use crate::connection::{Master, Node, Operation};
use crate::{Inspection, StoreError};

/// A realm whose nodes have to confirm its numbers.
struct Asked<'a> {
    position: usize,
    realm: &'a RedisStore,
    numbers: Numbers,
    /// The nodes that have confirmed, as the scripts read them: `node=since`.
    confirmed: Vec<String>,
    lost: bool,
}

impl RedisStore {
    /// Checks which realms are complete on checked nodes. Nodes that have replaced checked ones and
    /// have kept every write of this process become checked ones. `realms` are stores that share
    /// this one's connection.
    ///
    /// # Errors
    /// If Redis does not answer, or a node is replaced during the check.
    pub async fn check_realms(
        &self,
        nodes: &Nodes,
        realms: &[Self],
        random: &mut impl CryptoRng,
    ) -> Result<Vec<Inspection>, StoreError> {
        // A node that becomes a checked one decides, and sidecars cannot load what it lacks.
        self.load_scripts(nodes.0.iter().map(|found| &found.master.node)).await?;
        let names: Vec<&RealmNames> = realms.iter().map(|realm| &realm.names).collect();
        let found = self.inspect_realms(nodes, &names).await?;
        for (realm, (_, meta)) in realms.iter().zip(&found) {
            realm.clean_meta(nodes, *meta).await?;
        }
        let mut inspections: Vec<Inspection> =
            found.into_iter().map(|(inspection, _)| inspection).collect();
        let (mut asked, mut unnumbered) = (Vec::new(), Vec::new());
        for (position, (realm, inspection)) in realms.iter().zip(&mut inspections).enumerate() {
            if !inspection.complete {
                realm.numbers.forget();
                continue;
            }
            match realm.numbers.see(&realm.seen(nodes)) {
                Change::Unnumbered if inspection.ready => {
                    unnumbered.push((realm, format!("{:016x}", random.next_u64())));
                }
                Change::None | Change::Unnumbered => {}
                Change::Unprovable => realm.reject(nodes, inspection).await?,
                Change::Other(numbers) => {
                    let (confirmed, lost) = (Vec::new(), false);
                    asked.push(Asked { position, realm, numbers, confirmed, lost });
                }
            }
        }
        self.confirm_numbers(nodes, &mut asked).await?;
        let (lost, kept): (Vec<Asked<'_>>, Vec<Asked<'_>>) =
            asked.into_iter().partition(|asked| asked.lost);
        for Asked { position, realm, .. } in lost {
            realm.reject(nodes, &mut inspections[position]).await?;
        }
        self.accept_nodes(nodes, &kept, &mut inspections).await?;
        self.start_numbers(nodes, &unnumbered).await?;
        Ok(inspections)
    }

    /// Asks every node whether it has kept the numbers of each realm.
    async fn confirm_numbers(
        &self,
        nodes: &Nodes,
        asked: &mut [Asked<'_>],
    ) -> Result<(), StoreError> {
        for FoundMaster { master, found, .. } in &nodes.0 {
            let keys: Vec<(String, String)> =
                asked.iter().map(|asked| asked.realm.number_key(master)).collect();
            let asked_at = self.clock.now().millis();
            let calls = asked.iter().zip(&keys).map(|(asked, (tag, key))| scripts::ConfirmNumber {
                number_key: key,
                asked_at,
                node: &found.identity,
                epoch: &asked.numbers.epoch,
                number: asked.numbers.last(tag),
            });
            let calls: Vec<_> = calls.collect();
            let answers: Vec<Answer> =
                self.call_all(&master.node, &self.scripts.confirm_number, &calls).await?;
            drop(calls);
            for (asked, (word, since)) in asked.iter_mut().zip(answers) {
                if word == "lost" {
                    asked.lost = true;
                } else {
                    confirmed(&word, "confirmed", since)?;
                    asked.confirmed.push(format!("{}={since}", found.identity));
                }
            }
        }
        Ok(())
    }

    /// Makes the nodes the checked nodes of realms.
    async fn accept_nodes(
        &self,
        nodes: &Nodes,
        kept: &[Asked<'_>],
        inspections: &mut [Inspection],
    ) -> Result<(), StoreError> {
        let metas: Vec<String> = kept.iter().map(|asked| asked.realm.names.realm_meta()).collect();
        for (node, positions) in
            self.connection.grouped(metas.iter().map(String::as_str), BATCH_TIMEOUT).await?
        {
            let found = nodes.0.iter().find(|found| Arc::ptr_eq(&found.master.node, &node));
            let found = found.ok_or(Undecided::UncheckedNode)?;
            let call = |position: &usize| scripts::AcceptNodes {
                meta_key: &metas[*position],
                node: &found.found.identity,
                checked_nodes: kept[*position].confirmed.join(" "),
            };
            let calls: Vec<_> = positions.iter().map(call).collect();
            let answers: Vec<Answer> =
                self.call_all(&node, &self.scripts.accept_nodes, &calls).await?;
            for (position, (word, number)) in positions.into_iter().zip(answers) {
                let Asked { position, realm, numbers, .. } = &kept[position];
                if word == "interrupted" {
                    realm.numbers.forget();
                    continue;
                }
                confirmed(&word, "accepted", number)?;
                if realm.numbers.resume(&numbers.epoch, realm.seen(nodes)) {
                    let inspection = &mut inspections[*position];
                    (inspection.ready, inspection.kept) = (true, true);
                }
            }
        }
        Ok(())
    }

    /// Begins to number the writes of realms on checked nodes, each with its epoch.
    pub(super) async fn start_numbers(
        &self,
        nodes: &Nodes,
        realms: &[(&Self, String)],
    ) -> Result<(), StoreError> {
        let started =
            realms.iter().map(|(realm, epoch)| realm.numbers.start(epoch, realm.seen(nodes)));
        let started: Vec<Numbers> = started.collect();
        for FoundMaster { master, found, .. } in &nodes.0 {
            let keys: Vec<(String, String)> =
                realms.iter().map(|(realm, _)| realm.number_key(master)).collect();
            let calls = realms.iter().zip(&keys).map(|((_, epoch), (_, key))| {
                scripts::NumberWrite { number_key: key, node: &found.identity, epoch, starts: true }
            });
            let calls: Vec<_> = calls.collect();
            let answers: Vec<Answer> =
                self.call_all(&master.node, &self.scripts.number_write, &calls).await?;
            for (index, (word, number)) in answers.into_iter().enumerate() {
                confirmed(&word, "numbered", number)?;
                let number = u64::try_from(number).map_err(|_| StoreError::Protocol)?;
                realms[index].0.numbers.record(&started[index], &keys[index].0, number)?;
            }
        }
        Ok(())
    }

    /// Ends a write on `nodes` with a number, if writes are numbered. Only then the write counts.
    pub(super) async fn number_writes(&self, nodes: &[Arc<Node>]) -> Result<(), StoreError> {
        let Some(numbers) = self.numbers.current()? else { return Ok(()) };
        let masters = self.connection.masters(BATCH_TIMEOUT).await?;
        for node in nodes {
            let master = masters.iter().find(|master| Arc::ptr_eq(&master.node, node));
            let key = master.map(|master| self.number_key(master));
            let known = key.as_ref().and_then(|(tag, _)| numbers.node(tag));
            let (Some((tag, number_key)), Some(known)) = (&key, known) else {
                // Slots have moved, so the numbers prove nothing any more.
                self.numbers.forget_epoch(&numbers.epoch);
                return Ok(());
            };
            let call = scripts::NumberWrite {
                number_key,
                node: &known.identity,
                epoch: &numbers.epoch,
                starts: false,
            };
            let call = call.of(&self.scripts.number_write);
            let (word, number): (String, i64) =
                self.connection.run_on(node, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
            if word == "another-epoch" {
                // Another publisher counts, or the node was flushed.
                self.numbers.forget_epoch(&numbers.epoch);
                return Ok(());
            }
            confirmed(&word, "numbered", number)?;
            let number = u64::try_from(number).map_err(|_| StoreError::Protocol)?;
            self.numbers.record(&numbers, tag, number)?;
        }
        Ok(())
    }

    /// Forgets the numbers, because a node has lost writes. If another publisher has declared it
    /// checked, that is taken back.
    async fn reject(&self, nodes: &Nodes, inspection: &mut Inspection) -> Result<(), StoreError> {
        self.numbers.forget();
        if std::mem::replace(&mut inspection.ready, false) {
            let meta = self.names.realm_meta();
            let mut command = redis::cmd("HDEL");
            command.arg(&meta);
            for node in &nodes.0 {
                command.arg(format!("guard:{}", node.found.identity));
            }
            self.query::<()>(&meta, &command).await?;
        }
        Ok(())
    }

    /// Forgets the numbers if they belong to other nodes than these.
    pub(crate) fn see(&self, inspection: &Inspection) {
        self.numbers.forget_unless_on(&inspection.identity());
    }

    /// Returns the tag and the key of the number on a master.
    fn number_key(&self, master: &Master) -> (String, String) {
        let tag = master.tag.clone().unwrap_or_else(|| self.names.realm().to_string());
        let key = self.names.write_number(&tag);
        (tag, key)
    }

    fn seen(&self, nodes: &Nodes) -> SeenNodes {
        let seen = |FoundMaster { master, found, .. }: &FoundMaster| {
            let node = SeenNode { identity: found.identity.clone(), slots: master.slots.clone() };
            (self.number_key(master).0, node)
        };
        nodes.0.iter().map(seen).collect()
    }
}
