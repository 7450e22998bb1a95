//! Reads which nodes Redis consists of and what they hold of realms, and declares realms complete.
//!
//! The realm's `meta` lists the checked masters, on the node that has its slot. One of several
//! masters can be flushed without the others, so each fill writes its id to every one of them, and
//! `meta` holds the id of the last complete fill.

use twofactor_core::decision::{LONGEST_AHEAD, Undecided};
use twofactor_core::names::{Pseudonym, RealmNames, UserNames};

use super::publish::WRONG_TYPE;
use super::scripts::{self, ScriptCall};
use super::{
    Answer, BATCH, BATCH_TIMEOUT, Fields, OPERATION_TIMEOUT, RedisStore, clock_off, moment, read,
};
use crate::connection::{Master, Node, Operation, replicas_in};
use crate::{Inspection, NodeInspection, StoreError};

/// The masters of Redis, as they were when they were asked.
pub struct Nodes(pub(super) Vec<FoundMaster>);

/// What a realm's `meta` is, which sidecars may write in Redis 6.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    /// As the publisher writes it.
    Fine,
    /// It has other fields too, such as those of nodes that are gone.
    HasOthers,
    /// The publisher never writes it like this.
    Spoilt,
}

/// Maximum length of the id of a fill.
const LONGEST_FILL_ID: usize = 64;
/// Maximum number of fields of a `meta` that are looked at.
const MOST_FIELDS: usize = 1000;

/// A master that has answered.
pub(super) struct FoundMaster {
    pub(super) master: Master,
    pub(super) found: NodeInspection,
    /// The addresses of its replicas that are synchronized.
    replicas: Vec<String>,
    /// Its time, in milliseconds.
    now: u64,
}

impl Nodes {
    /// The identity of all nodes together.
    #[must_use]
    pub fn identity(&self) -> String {
        let mut identities: Vec<&str> =
            self.0.iter().map(|node| node.found.identity.as_str()).collect();
        // The order does not depend on which node was asked first.
        identities.sort_unstable();
        identities.join(" ")
    }

    /// The identity of all nodes together and the addresses of their replicas.
    #[must_use]
    pub fn servers(&self) -> String {
        let mut replicas: Vec<&str> =
            self.0.iter().flat_map(|node| &node.replicas).map(String::as_str).collect();
        replicas.sort_unstable();
        [self.identity().as_str(), &replicas.join(" ")].join(" ")
    }
}

impl RedisStore {
    pub(crate) async fn inspect(&self) -> Result<Inspection, StoreError> {
        let nodes = self.nodes().await?;
        let inspections = self.inspect_realms(&nodes, &[&self.names]).await?;
        let (inspection, _) = inspections.into_iter().next().ok_or(StoreError::Protocol)?;
        Ok(inspection)
    }

    /// Asks every master for its identity.
    ///
    /// # Errors
    /// If Redis does not answer, or one of a cluster's masters does not.
    pub async fn nodes(&self) -> Result<Nodes, StoreError> {
        let mut nodes = Vec::new();
        for master in self.connection.masters(BATCH_TIMEOUT).await? {
            let (found, replicas, now) = self.ask_node(&master.node).await?;
            nodes.push(FoundMaster { master, found, replicas, now });
        }
        Ok(Nodes(nodes))
    }

    /// [`crate::Publishing::inspect`] for several realms at once, in their order.
    pub(super) async fn inspect_realms(
        &self,
        nodes: &Nodes,
        realms: &[&RealmNames],
    ) -> Result<Vec<(Inspection, Meta)>, StoreError> {
        let mut found: Vec<NodeInspection> =
            nodes.0.iter().map(|node| node.found.clone()).collect();
        found.sort_by(|one, other| one.identity.cmp(&other.identity));
        let fill_ids = self.fill_ids(nodes, realms).await?;
        let metas: Vec<String> = realms.iter().map(|realm| realm.realm_meta()).collect();
        let mut inspections: Vec<Option<(Inspection, Meta)>> = vec![None; realms.len()];
        for (node, positions) in
            self.connection.grouped(metas.iter().map(String::as_str), BATCH_TIMEOUT).await?
        {
            for part in positions.chunks(BATCH) {
                let mut pipeline = redis::pipe();
                for position in part {
                    let meta = &metas[*position];
                    pipeline.cmd("HMGET").arg(meta).arg("complete").arg("filled").arg("filling");
                    for node in &found {
                        pipeline.arg(format!("guard:{}", node.identity));
                    }
                    pipeline.exists(realms[*position].realm_record()).hlen(meta);
                }
                // In Redis 6.2, sidecars may write the keys of their realm.
                let answers = self.send_to_spoilt_keys(&node, &mut pipeline).await?;
                for (position, answers) in part.iter().zip(answers.chunks_exact(3)) {
                    let fields: Vec<Option<Vec<u8>>> = read(&answers[0]).unwrap_or_default();
                    let number: usize = read(&answers[2]).unwrap_or_default();
                    let meta = evaluate(&fields, number);
                    let (complete, ready) = match fields.as_slice() {
                        [Some(_), filled, _, checked_nodes @ ..] if meta != Meta::Spoilt => {
                            let filled = filled.as_deref();
                            let same_fill = fill_ids[*position]
                                .iter()
                                .all(|fill_id| fill_id.is_some() && fill_id.as_deref() == filled);
                            // A realm that was declared complete after a flush has no record of its
                            // own.
                            let complete = same_fill && read(&answers[1])?;
                            let is_checked = |(since, node): (&Option<Vec<u8>>, &_)| {
                                is_plausible(since.as_deref(), latest_of(nodes, node))
                            };
                            (complete, complete && checked_nodes.iter().zip(&found).all(is_checked))
                        }
                        _ => (false, false),
                    };
                    let inspection = Inspection {
                        nodes: found.clone(),
                        ready,
                        complete,
                        kept: false,
                        fill_id: String::new(),
                    };
                    inspections[*position] = Some((inspection, meta));
                }
            }
        }
        inspections.into_iter().collect::<Option<Vec<_>>>().ok_or(StoreError::Protocol)
    }

    /// Removes from the realm's `meta` what the publisher does not write. One that is spoilt is
    /// deleted, so that the realm is filled again.
    pub(super) async fn clean_meta(&self, nodes: &Nodes, meta: Meta) -> Result<(), StoreError> {
        let key = self.names.realm_meta();
        match meta {
            Meta::Fine => Ok(()),
            Meta::Spoilt => self.query(&key, redis::cmd("UNLINK").arg(&key)).await,
            Meta::HasOthers => {
                let fields: Vec<Vec<u8>> = self.query(&key, redis::cmd("HKEYS").arg(&key)).await?;
                let guards = nodes.0.iter().map(|node| format!("guard:{}", node.found.identity));
                let mut known: Vec<String> = guards.collect();
                known.extend(["complete", "filled", "filling"].map(str::to_owned));
                let is_known = |field: &[u8]| known.iter().any(|known| known.as_bytes() == field);
                let mut remove = redis::cmd("HDEL");
                remove.arg(&key);
                let others = fields.iter().filter(|field| !is_known(field));
                for field in others.clone() {
                    remove.arg(field);
                }
                if others.count() == 0 {
                    return Ok(());
                }
                self.query(&key, &remove).await
            }
        }
    }

    async fn inspect_node(&self, node: &Node) -> Result<NodeInspection, StoreError> {
        self.ask_node(node).await.map(|(found, ..)| found)
    }

    /// Asks a node for its identity, its replicas and its time in milliseconds.
    async fn ask_node(
        &self,
        node: &Node,
    ) -> Result<(NodeInspection, Vec<String>, u64), StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("INFO").arg("server").cmd("INFO").arg("replication").cmd("DBSIZE");
        pipeline.cmd("TIME");
        let (server, replication, keys, (seconds, _)): (String, String, u64, (u64, u64)) =
            self.connection.run_on(node, BATCH_TIMEOUT, Operation::Pipeline(&pipeline)).await?;
        let identity = node_identity(&server, &replication)?;
        let replicas = replicas_in(&replication).into_iter();
        let replicas = replicas.map(|replica| replica.to_string()).collect();
        let now = seconds.saturating_mul(1000);
        Ok((NodeInspection { identity, empty: keys == 0 }, replicas, now))
    }

    /// Reads, for each realm, the fill ids on the masters of a cluster. There are none if Redis is
    /// not a cluster.
    async fn fill_ids(
        &self,
        nodes: &Nodes,
        realms: &[&RealmNames],
    ) -> Result<Vec<Vec<Option<Vec<u8>>>>, StoreError> {
        let mut fill_ids = vec![Vec::new(); realms.len()];
        for FoundMaster { master, .. } in &nodes.0 {
            let Some(tag) = &master.tag else { continue };
            for (part, fill_ids) in realms.chunks(BATCH).zip(fill_ids.chunks_mut(BATCH)) {
                let mut pipeline = redis::pipe();
                for realm in part {
                    pipeline.get(realm.node_fill_id(tag));
                }
                let found = self.send_to_spoilt_keys(&master.node, &mut pipeline).await?;
                for (fill_ids, found) in fill_ids.iter_mut().zip(found) {
                    fill_ids.push(read(&found).unwrap_or_default());
                }
            }
        }
        Ok(fill_ids)
    }

    pub(crate) async fn begin_fill(&self, fill_id: &str) -> Result<(), StoreError> {
        // The writes of a fill prove nothing before its end.
        self.numbers.forget();
        for (node, tag) in self.connection.tags(BATCH_TIMEOUT).await? {
            let mut set = redis::cmd("SET");
            set.arg(self.names.node_fill_id(&tag)).arg(fill_id);
            self.connection
                .run_on::<()>(&node, OPERATION_TIMEOUT, Operation::Command(&set))
                .await?;
        }
        let meta = self.names.realm_meta();
        let mut mark = redis::cmd("HSET");
        mark.arg(&meta).arg("filling").arg(fill_id);
        match self.query(&meta, &mark).await {
            Err(StoreError::Unavailable(error)) if error.code() == Some(WRONG_TYPE) => {
                self.query::<()>(&meta, redis::cmd("UNLINK").arg(&meta)).await?;
                self.query(&meta, &mark).await
            }
            result => result,
        }
    }

    pub(crate) async fn complete_fill(&self, inspection: &Inspection) -> Result<(), StoreError> {
        let masters = self.connection.masters(BATCH_TIMEOUT).await?;
        self.load_scripts(masters.iter().map(|master| &master.node)).await?;
        let mut checked_nodes = Vec::new();
        for (node, tag) in self.connection.tags(BATCH_TIMEOUT).await? {
            checked_nodes
                .push(self.confirm_node(&node, &self.names.node_fill_id(&tag), inspection).await?);
        }
        let meta = self.names.realm_meta();
        let own = match inspection.nodes.as_slice() {
            [only] => only.clone(),
            _ => self.owner_of(&meta, inspection).await?,
        };
        let others: Vec<String> = checked_nodes
            .iter()
            .filter(|(identity, _)| *identity != own.identity)
            .map(|(identity, since)| format!("{identity}={since}"))
            .collect();
        let call = scripts::CompleteFill {
            meta_key: &meta,
            asked_at: self.clock.now().millis(),
            node: &own.identity,
            was_empty: own.empty,
            fill_id: &inspection.fill_id,
            other_nodes: others.join(" "),
        };
        let call = call.of(&self.scripts.complete_fill);
        let (word, number): Answer =
            self.connection.run(&meta, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
        confirmed(&word, "completed", number)?;
        // From now on each write is numbered, so that the next restart needs no fill.
        let nodes = self.nodes().await?;
        let is_known = |node: &FoundMaster| {
            inspection.nodes.iter().any(|known| known.identity == node.found.identity)
        };
        if !nodes.0.iter().all(is_known) {
            return Err(Undecided::UncheckedNode.into());
        }
        self.start_numbers(&nodes, &[(self, inspection.fill_id.clone())]).await
    }

    /// Confirms that a master of a cluster is one that was checked, and that it was not flushed
    /// since the fill began. Returns its identity and the moment since which its data counts.
    async fn confirm_node(
        &self,
        node: &Node,
        fill_key: &str,
        inspection: &Inspection,
    ) -> Result<(String, i64), StoreError> {
        let found = self.inspect_node(node).await?;
        let known = inspection.nodes.iter().find(|known| known.identity == found.identity);
        let known = known.ok_or(Undecided::UncheckedNode)?;
        let call = scripts::ConfirmNode {
            fill_key,
            asked_at: self.clock.now().millis(),
            node: &known.identity,
            was_empty: known.empty,
            fill_id: &inspection.fill_id,
        };
        let call = call.of(&self.scripts.confirm_node);
        let (word, since): Answer =
            self.connection.run_on(node, OPERATION_TIMEOUT, Operation::Script(&call)).await?;
        confirmed(&word, "confirmed", since)?;
        Ok((known.identity.clone(), since))
    }

    /// Returns which of the nodes that were checked has a key.
    async fn owner_of(
        &self,
        key: &str,
        inspection: &Inspection,
    ) -> Result<NodeInspection, StoreError> {
        let owner = self.connection.grouped([key].into_iter(), BATCH_TIMEOUT).await?.pop();
        let (node, _) = owner.ok_or(StoreError::Protocol)?;
        let found = self.inspect_node(&node).await?;
        let known = inspection.nodes.iter().find(|known| known.identity == found.identity);
        Ok(known.ok_or(Undecided::UncheckedNode)?.clone())
    }

    pub(crate) async fn confirm_absence(&self, user: &Pseudonym) -> Result<bool, StoreError> {
        let UserNames { record, state, .. } = self.names.user(user);
        if let Some((node, tag)) = self.connection.tag_beside(&state, OPERATION_TIMEOUT).await? {
            return self.confirm_absence_on(&node, &tag, user).await;
        }
        let mut pipeline = redis::pipe();
        // In one transaction, because a fill between two of these commands would make a loss look
        // like an absence.
        pipeline.atomic().cmd("INFO").arg("server").cmd("INFO").arg("replication");
        pipeline.exists(&record).exists(&state).hgetall(self.names.realm_meta());
        let (server, replication, record, state, meta): (String, String, bool, bool, Fields) =
            self.query_pipeline(&state, &pipeline, OPERATION_TIMEOUT).await?;
        absent(&meta, &node_identity(&server, &replication)?, record, state)
    }

    /// In a cluster, no transaction can read the user's keys and the realm's. But a node that holds
    /// the id of the realm's last complete fill before and after the user's keys are read, and has
    /// the same identity both times, has kept everything that was published to it.
    async fn confirm_absence_on(
        &self,
        node: &Node,
        tag: &str,
        user: &Pseudonym,
    ) -> Result<bool, StoreError> {
        let UserNames { record, state, .. } = self.names.user(user);
        let (meta, fill_id) = (self.names.realm_meta(), self.names.node_fill_id(tag));
        let meta: Fields = self.query(&meta, redis::cmd("HGETALL").arg(&meta)).await?;
        let mut pipeline = redis::pipe();
        pipeline.get(&fill_id).cmd("INFO").arg("server").cmd("INFO").arg("replication");
        pipeline.exists(&record).exists(&state);
        pipeline.get(&fill_id).cmd("INFO").arg("server").cmd("INFO").arg("replication");
        let answers: Vec<redis::Value> =
            self.connection.run_on(node, OPERATION_TIMEOUT, Operation::Pipeline(&pipeline)).await?;
        let [before @ .., record, state, fill_id, server, replication] = answers.as_slice() else {
            return Err(StoreError::Protocol);
        };
        let (fill_id, identity) =
            fill_and_identity(&[fill_id.clone(), server.clone(), replication.clone()])?;
        let (fill_before, identity_before) = fill_and_identity(before)?;
        if identity != identity_before {
            return Err(Undecided::UncheckedNode.into());
        }
        if fill_id.is_none() || fill_id != fill_before || fill_id.as_ref() != meta.0.get("filled") {
            return Err(Undecided::NoState.into());
        }
        absent(&meta, &identity, read(record)?, read(state)?)
    }
}

/// Evaluates what was read of a `meta`: the fields `complete`, `filled`, `filling` and those of the
/// nodes, and the number of all fields. A key of another type has none.
fn evaluate(fields: &[Option<Vec<u8>>], number: usize) -> Meta {
    let [complete, ids @ ..] = fields else { return Meta::Spoilt };
    let ids = &ids[..ids.len().min(2)];
    let is_complete = complete.as_deref().is_none_or(|complete| complete == b"1");
    let are_ids = ids.iter().flatten().all(|id| id.len() <= LONGEST_FILL_ID);
    if !is_complete || !are_ids || number > MOST_FIELDS {
        Meta::Spoilt
    } else if number > fields.iter().flatten().count() {
        Meta::HasOthers
    } else {
        Meta::Fine
    }
}

/// Returns the latest moment that a script can have written on a node: a little more than its time.
fn latest_of(nodes: &Nodes, node: &NodeInspection) -> u64 {
    let found = nodes.0.iter().find(|known| known.found == *node);
    let ahead = u64::try_from(LONGEST_AHEAD.as_millis()).unwrap_or(u64::MAX);
    found.map_or(0, |found| found.now.saturating_add(ahead))
}

/// Whether the moment since which a node's data counts is one. One that is ahead would have every
/// code refused until then.
fn is_plausible(since: Option<&[u8]>, latest: u64) -> bool {
    let text = since.and_then(|since| std::str::from_utf8(since).ok());
    text.and_then(moment).is_some_and(|since| since <= latest)
}

/// Parses a node's replies about its fill id and its identity.
fn fill_and_identity(answers: &[redis::Value]) -> Result<(Option<String>, String), StoreError> {
    let [fill_id, server, replication] = answers else { return Err(StoreError::Protocol) };
    Ok((read(fill_id)?, node_identity(&read::<String>(server)?, &read::<String>(replication)?)?))
}

/// Decides whether the absence of a user's keys means that there is no such user.
fn absent(meta: &Fields, node: &str, record: bool, state: bool) -> Result<bool, StoreError> {
    if !meta.0.contains_key(&format!("guard:{node}")) {
        return Err(Undecided::UncheckedNode.into());
    }
    // Half a user, or an incomplete realm, is a loss and not an absence.
    if !meta.0.contains_key("complete") || record != state {
        return Err(Undecided::NoState.into());
    }
    Ok(!record)
}

/// Checks that a script has replied with the expected word, and not with a reason and its number.
pub(super) fn confirmed(word: &str, expected: &str, number: i64) -> Result<(), StoreError> {
    match word {
        word if word == expected => Ok(()),
        "clock-off" => Err(clock_off(number)),
        "another-node" => Err(Undecided::UncheckedNode.into()),
        "interrupted" => Err(Undecided::NoState.into()),
        _ => Err(StoreError::Protocol),
    }
}

/// Returns the identity of a node: its process, and its term as a master. The scripts compute the
/// same.
pub(super) fn node_identity(server: &str, replication: &str) -> Result<String, StoreError> {
    let field = |information: &str, name: &str| {
        information
            .lines()
            .find_map(|line| line.strip_prefix(name).map(str::to_owned))
            .ok_or(StoreError::Protocol)
    };
    Ok(format!("{}.{}", field(server, "run_id:")?, field(replication, "master_replid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_that_the_publisher_does_not_write_is_found() {
        let fields = |texts: &[&str]| -> Vec<Option<Vec<u8>>> {
            let bytes = |text: &&str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
            texts.iter().map(bytes).collect()
        };
        assert_eq!(evaluate(&fields(&["1", "ab", "", "5"]), 3), Meta::Fine);
        assert_eq!(evaluate(&fields(&["", "", "", ""]), 0), Meta::Fine, "it does not exist");
        assert_eq!(evaluate(&fields(&["1", "ab", "cd", "5"]), 5), Meta::HasOthers);
        assert_eq!(evaluate(&fields(&["1", "ab", "", "5"]), 1001), Meta::Spoilt);
        assert_eq!(evaluate(&fields(&["yes", "ab", "", "5"]), 3), Meta::Spoilt);
        assert_eq!(evaluate(&fields(&["1", &"a".repeat(65), "", "5"]), 3), Meta::Spoilt);
        assert_eq!(evaluate(&fields(&["1", "ab", &"a".repeat(65), "5"]), 4), Meta::Spoilt);
        assert_eq!(evaluate(&[], 0), Meta::Spoilt, "it is no hash");
    }

    #[test]
    fn a_nodes_identity_is_its_process_and_its_term_as_a_master() {
        let identity =
            node_identity("# Server\r\nrun_id:ab12\r\n", "role:master\r\nmaster_replid:cd34\r\n")
                .unwrap();
        assert_eq!(identity, "ab12.cd34");
    }
}
