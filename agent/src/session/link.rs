//! The connection that is up now, as the rest of the agent sees it: attempts wait for one, and notice by its number when it is
//! not the one they began with.

use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

use sealift_proto::v1::AgentMessage;

/// One session that the coordinator welcomed.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Counts sessions of this process.
    pub number: u64,
    /// For calls; the session runs over the same connection.
    pub channel: Channel,
    /// Messages up the session's stream.
    pub outgoing: mpsc::Sender<AgentMessage>,
}

/// A view of the connection.
#[derive(Debug, Clone)]
pub struct Link(watch::Receiver<Option<Connection>>);

/// The session's end of [`Link`].
#[derive(Debug)]
pub struct LinkOwner(watch::Sender<Option<Connection>>);

impl LinkOwner {
    /// A link that is down.
    pub fn new() -> (Self, Link) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), Link(receiver))
    }

    /// The session is up.
    pub fn up(&self, connection: Connection) {
        self.0.send_replace(Some(connection));
    }

    /// The session is gone.
    pub fn down(&self) {
        self.0.send_replace(None);
    }
}

impl Link {
    /// The connection, once there is one; `None` when the agent stops.
    pub async fn connected(&mut self) -> Option<Connection> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|connection| connection.clone())
    }

    /// The connection, if there is one now.
    pub fn current(&self) -> Option<Connection> {
        self.0.borrow().clone()
    }
}
