//! Finds the master that Sentinels name, also after a failover.

use std::collections::HashMap;
use std::sync::Arc;

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
        Ok(Self { asked, name, of_data, master: Refreshed::default() })
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
