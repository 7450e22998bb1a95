//! Describes a command, a pipeline or a script as a value that can be sent again to another node.

use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, Value,
};

/// One operation.
#[derive(Clone, Copy)]
pub(crate) enum Operation<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
    Script(&'a ScriptCommand<'a>),
}

/// A call of a script.
pub struct ScriptCommand<'a> {
    pub(crate) command: Cmd,
    /// The script, if this process loads it into a node that does not know it.
    pub(crate) text: Option<&'a str>,
}

impl Operation<'_> {
    pub(crate) async fn perform(self, connection: &mut NodeConnection) -> RedisResult<Value> {
        match self {
            Self::Command(command) => command.query_async(connection).await,
            Self::Pipeline(pipeline) => pipeline.query_async(connection).await,
            Self::Script(call) => call.perform(connection).await,
        }
    }
}

impl ScriptCommand<'_> {
    async fn perform(&self, connection: &mut NodeConnection) -> RedisResult<Value> {
        let answer = self.command.query_async(connection).await;
        let (Err(error), Some(text)) = (&answer, self.text) else { return answer };
        if error.kind() != ErrorKind::Server(ServerErrorKind::NoScript) {
            return answer;
        }
        redis::cmd("SCRIPT").arg("LOAD").arg(text).exec_async(connection).await?;
        self.command.query_async(connection).await
    }
}

/// A connection to a node.
#[derive(Clone)]
pub(crate) struct NodeConnection {
    kind: Sharing,
    /// Whether the slot is being moved to this node, which then answers only after `ASKING`.
    asking: bool,
}

#[derive(Clone)]
enum Sharing {
    /// Many operations use it at the same time.
    Shared(ConnectionManager),
    /// Only one operation uses it.
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
            // Both are sent in one piece, because `ASKING` applies to the next command, which on a
            // shared connection could be of another operation.
            let mut pipeline = redis::pipe();
            pipeline.cmd("ASKING").add_command(cmd.clone());
            let mut answers = self.inner().req_packed_commands(&pipeline, 0, 2).await?;
            match answers.pop() {
                Some(Value::ServerError(error)) => Err(error.into()),
                Some(answer) => Ok(answer),
                None => Err(RedisError::from((ErrorKind::UnexpectedReturnType, "no reply"))),
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
        // Each command would need its own `ASKING`. The pipeline is sent again when the slot was
        // moved.
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
