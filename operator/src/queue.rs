//! Which users have to be looked at. Enters: references from watches, the guard and sweeps. Leaves: each of them once, for
//! the reconciler, however often it was asked for meanwhile.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::Stream;
use futures_util::stream::unfold;
use kube::runtime::reflector::ObjectRef;
use prometheus::IntGauge;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_util::sync::CancellationToken;
use twofactor_api::TwoFactorUser;

/// A reference to a user.
pub type UserRef = ObjectRef<TwoFactorUser>;

/// The queue's end for those who ask. It holds a user at most once, so it is bounded by the number of users.
#[derive(Clone, Debug)]
pub struct Queue {
    waiting: Arc<Mutex<HashSet<UserRef>>>,
    sender: UnboundedSender<UserRef>,
    depth: IntGauge,
}

impl Queue {
    /// A queue whose length is shown by `depth`, and its other end.
    #[must_use]
    pub fn new(depth: IntGauge) -> (Self, UnboundedReceiver<UserRef>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { waiting: Arc::default(), sender, depth }, receiver)
    }

    /// Asks for a user to be looked at.
    pub fn push(&self, user: UserRef) {
        let mut waiting = self.waiting();
        if waiting.insert(user.clone()) {
            // Fails only when the reconciler has ended, and the process with it.
            let _ = self.sender.send(user);
        }
        self.show(&waiting);
    }

    /// The user is being looked at, or is gone; from now on they may be asked for again.
    pub fn taken(&self, user: &UserRef) {
        let mut waiting = self.waiting();
        waiting.remove(user);
        self.show(&waiting);
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<UserRef>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, waiting: &HashSet<UserRef>) {
        self.depth.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
    }
}

/// The reference to the user `name` in `namespace`.
#[must_use]
pub fn user_ref(namespace: &str, name: &str) -> UserRef {
    ObjectRef::new(name).within(namespace)
}

/// What is asked for, until it is time to stop.
pub fn requests(
    receiver: UnboundedReceiver<UserRef>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<UserRef, Infallible>> {
    unfold((receiver, stop), |(mut receiver, stop)| async move {
        let user = stop.run_until_cancelled(receiver.recv()).await??;
        Some((Ok(user), (receiver, stop)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_is_waiting_once_and_can_be_asked_for_again_when_taken() {
        let depth = IntGauge::new("depth", "depth").unwrap();
        let (queue, mut receiver) = Queue::new(depth.clone());
        let alice = user_ref("people", "alice");
        queue.push(alice.clone());
        queue.push(alice.clone());
        assert_eq!(depth.get(), 1);
        assert_eq!(receiver.recv().await, Some(alice.clone()));
        queue.taken(&alice);
        assert_eq!(depth.get(), 0);
        queue.push(alice.clone());
        assert_eq!(receiver.recv().await, Some(alice));
        assert!(receiver.try_recv().is_err());
    }
}
