//! What Redis is asked for, as something that can be asked again elsewhere. Enters: a command, a
//! pipeline or a script, and a connection. Leaves: the answer.

use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ScriptInvocation, Value,
};

/// One question.
#[derive(Clone, Copy)]
pub(crate) enum Operation<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
    /// Loaded into the node when it does not know it.
    Script(&'a ScriptInvocation<'a>),
}

impl Operation<'_> {
    pub(crate) async fn perform(self, connection: &mut NodeConnection) -> RedisResult<Value> {
        match self {
            Self::Command(command) => command.query_async(connection).await,
            Self::Pipeline(pipeline) => pipeline.query_async(connection).await,
            Self::Script(call) => call.invoke_async(connection).await,
        }
    }
}

/// A connection to a node.
#[derive(Clone)]
pub(crate) struct NodeConnection {
    kind: Sharing,
    /// Whether the slot is on its way to this node, which answers only those who say that they
    /// know.
    asking: bool,
}

#[derive(Clone)]
enum Sharing {
    /// Many operations go over it at the same time.
    Shared(ConnectionManager),
    /// It is one operation's alone.
    Own(MultiplexedConnection),
}

impl NodeConnection {
    pub(crate) fn shared(manager: ConnectionManager, asking: bool) -> Self {
        Self { kind: Sharing::Shared(manager), asking }
    }

    pub(crate) fn own(connection: MultiplexedConnection, asking: bool) -> Self {
        Self { kind: Sharing::Own(connection), asking }
    }

    fn inner(&mut self) -> &mut (dyn ConnectionLike + Send) {
        match &mut self.kind {
            Sharing::Shared(manager) => manager,
            Sharing::Own(connection) => connection,
        }
    }
}

impl ConnectionLike for NodeConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        if !self.asking {
            return self.inner().req_packed_command(cmd);
        }
        Box::pin(async move {
            // In one piece: it holds for the next command, which on a shared connection could be
            // another's.
            let mut pipeline = redis::pipe();
            pipeline.cmd("ASKING").add_command(cmd.clone());
            let mut answers = self.inner().req_packed_commands(&pipeline, 0, 2).await?;
            match answers.pop() {
                Some(Value::ServerError(error)) => Err(error.into()),
                Some(answer) => Ok(answer),
                None => Err(RedisError::from((ErrorKind::UnexpectedReturnType, "no answer"))),
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        if !self.asking {
            return self.inner().req_packed_commands(pipeline, offset, count);
        }
        // Each of its commands would have to be announced. It is sent again when the slot has
        // arrived.
        Box::pin(async {
            Err(RedisError::from((ErrorKind::Client, "a slot of the cluster is being moved")))
        })
    }

    fn get_db(&self) -> i64 {
        match &self.kind {
            Sharing::Shared(manager) => manager.get_db(),
            Sharing::Own(connection) => connection.get_db(),
        }
    }
}
