//! The master that Sentinels name. Enters: the Sentinels' addresses, and the name of the master.
//! Leaves: the node that is the master now; another one after a failover.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult};
use tokio::task::JoinSet;

use super::node::Node;
use super::operation::Operation;
use crate::url::{Address, Endpoint};

/// For a Sentinel to answer: a part of what an operation may take, so that one that is gone is not
/// the end of it.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two looks after something went wrong.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the master that was found is believed without a look: one that was replaced, and does
/// not know, may go on answering.
const BELIEVED: Duration = Duration::from_secs(5);

/// Sentinels, and the master that they look after.
pub(crate) struct Sentinels {
    asked: Vec<Arc<Node>>,
    name: String,
    of_data: Endpoint,
    master: ArcSwapOption<Node>,
    /// When the last look began.
    looked: Mutex<Option<Instant>>,
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
        Ok(Self { asked, name, of_data, master: ArcSwapOption::empty(), looked: Mutex::default() })
    }

    /// The master, as last named.
    pub(crate) async fn master(self: &Arc<Self>) -> RedisResult<Arc<Node>> {
        let Some(master) = self.master.load_full() else { return self.look().await };
        self.look_again(BELIEVED);
        Ok(master)
    }

    /// Something went wrong: the master may be another one by now.
    pub(crate) fn schedule_refresh(self: &Arc<Self>) {
        self.look_again(PAUSE);
    }

    /// Looks in the background, unless somebody did so just now.
    fn look_again(self: &Arc<Self>, pause: Duration) {
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|last| last.elapsed() < pause) {
                return;
            }
            *looked = Some(Instant::now());
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.look().await {
                tracing::debug!(%error, "the Sentinels name no master");
            }
        });
    }

    async fn look(&self) -> RedisResult<Arc<Node>> {
        let address = self.named().await?;
        if let Some(master) = self.master.load_full().filter(|master| *master.address() == address)
        {
            return Ok(master);
        }
        tracing::info!(master = %address, "connecting to the master that the Sentinels name");
        let client = self.of_data.client(&address)?;
        let master = Arc::new(Node::new(address, client)?);
        self.master.store(Some(master.clone()));
        Ok(master)
    }

    /// Asks all of them at once, and goes by the many: one that is cut off may still name a master
    /// that was replaced.
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

async fn ask(sentinel: &Node, name: &str) -> RedisResult<Address> {
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(name);
    let answer =
        tokio::time::timeout(PATIENCE, sentinel.perform(Operation::Command(&command), false)).await;
    let answer = answer
        .unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "no Sentinel answers in time"))));
    let answer = answer.inspect_err(|_| sentinel.renew())?;
    let Some((host, port)) = Option::<(String, u16)>::from_redis_value(answer)? else {
        return Err(RedisError::from((
            ErrorKind::MasterNameNotFoundBySentinel,
            "the Sentinels know no master of this name",
        )));
    };
    Ok(Address { host, port })
}
