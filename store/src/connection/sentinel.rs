//! Finds the master that Sentinels name, also after a failover.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult};
use tokio::task::JoinSet;

use super::node::Node;
use super::operation::Operation;
use super::refreshed::{ANSWER_TIMEOUT, Lookup, Refreshed};
use crate::url::{Address, Endpoint};

/// Sentinels, and the master that they monitor.
pub(crate) struct Sentinels {
    asked: Vec<Arc<Node>>,
    name: String,
    of_data: Endpoint,
    master: Refreshed<Node>,
    /// The replicas that the master has named last.
    replicas: Mutex<HashMap<Address, Arc<Node>>>,
}

impl Sentinels {
    pub(crate) fn new(
        sentinels: Vec<Address>,
        of_sentinels: &Endpoint,
        name: String,
        of_data: Endpoint,
    ) -> RedisResult<Self> {
        let sentinel = |address: Address| {
            let client = of_sentinels.client(&address)?;
            Ok(Arc::new(Node::new(address, client)?))
        };
        let asked = sentinels.into_iter().map(sentinel).collect::<RedisResult<Vec<_>>>()?;
        let replicas = Mutex::default();
        Ok(Self { asked, name, of_data, master: Refreshed::default(), replicas })
    }

    /// Asks the master for its replicas, because the login at the Sentinels may only ask for the
    /// master.
    pub(crate) async fn replicas(&self, master: &Node) -> RedisResult<Vec<Arc<Node>>> {
        let mut command = redis::cmd("INFO");
        command.arg("replication");
        let answer = master.perform(Operation::Command(&command), false).await?;
        let addresses = replicas_in(&String::from_redis_value(answer)?);
        let mut known = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|address, _| addresses.contains(address));
        for address in addresses {
            if !known.contains_key(&address) {
                let client = self.of_data.client(&address)?;
                known.insert(address.clone(), Arc::new(Node::new(address, client)?));
            }
        }
        Ok(known.values().cloned().collect())
    }

    /// Asks all Sentinels at once and follows the majority, because one that is cut off may still
    /// name a master that was replaced.
    async fn named(&self) -> RedisResult<Address> {
        let mut questions = JoinSet::new();
        for sentinel in &self.asked {
            let (sentinel, name) = (sentinel.clone(), self.name.clone());
            questions.spawn(async move { ask(&sentinel, &name).await });
        }
        let mut votes: HashMap<Address, usize> = HashMap::new();
        let mut failure = None;
        while let Some(answer) = questions.join_next().await {
            match answer {
                Ok(Ok(address)) => {
                    let count = votes.entry(address.clone()).or_default();
                    *count += 1;
                    if *count > self.asked.len() / 2 {
                        return Ok(address);
                    }
                }
                Ok(Err(error)) => failure = Some(error),
                Err(_) => {}
            }
        }
        let named = votes.into_iter().max_by_key(|(_, count)| *count).map(|(address, _)| address);
        named.ok_or_else(|| {
            failure.unwrap_or_else(|| RedisError::from((ErrorKind::Io, "no Sentinel answers")))
        })
    }
}

impl Lookup for Sentinels {
    type Value = Node;

    const FAILURE: &'static str = "failed to find the master: no Sentinel names one";

    fn refreshed(&self) -> &Refreshed<Node> {
        &self.master
    }

    async fn look_up(&self) -> RedisResult<Arc<Node>> {
        let address = self.named().await?;
        if let Some(master) = self.master.current().filter(|master| *master.address() == address) {
            return Ok(master);
        }
        tracing::info!(master = %address, "connecting to the master that the Sentinels name");
        let client = self.of_data.client(&address)?;
        Ok(Arc::new(Node::new(address, client)?))
    }
}

/// Returns the synchronized replicas in what a master says about replication, in lines like
/// `slave0:ip=10.0.0.2,port=6379,state=online`.
pub(crate) fn replicas_in(information: &str) -> Vec<Address> {
    let replica = |line: &str| {
        let (name, fields) = line.split_once(':')?;
        name.strip_prefix("slave")?.parse::<u32>().ok()?;
        let field = |name: &str| {
            fields.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let address = Address { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? };
        (field("state")? == "online").then_some(address)
    };
    information.lines().filter_map(replica).collect()
}

async fn ask(sentinel: &Node, name: &str) -> RedisResult<Address> {
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(name);
    let answer =
        tokio::time::timeout(ANSWER_TIMEOUT, sentinel.perform(Operation::Command(&command), false))
            .await;
    let answer = answer
        .unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "no Sentinel answered in time"))));
    let answer = answer.inspect_err(|_| sentinel.renew())?;
    let Some((host, port)) = Option::<(String, u16)>::from_redis_value(answer)? else {
        return Err(RedisError::from((
            ErrorKind::MasterNameNotFoundBySentinel,
            "the Sentinels know no master of this name",
        )));
    };
    Ok(Address { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_those_that_the_master_names() {
        let information = "# Replication\r\nrole:master\r\nconnected_slaves:3\r\n\
            slave0:ip=10.0.0.2,port=6379,state=online,offset=1,lag=0\r\n\
            slave1:ip=redis-2.redis,port=6380,state=online,offset=0,lag=0\r\n\
            slave2:ip=10.0.0.4,port=6379,state=wait_bgsave,offset=0,lag=0\r\n\
            slave_repl_offset:1\r\nmaster_replid:ab\r\n";
        let address = |host: &str, port| Address { host: host.to_owned(), port };
        assert_eq!(
            replicas_in(information),
            [address("10.0.0.2", 6379), address("redis-2.redis", 6380)]
        );
    }
}
