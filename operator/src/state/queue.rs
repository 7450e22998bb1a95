//! Queues the users that have to be reconciled. Each is queued once, no matter how often it is
//! requested before the reconciler takes it.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::Stream;
use futures_util::stream::unfold;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use prometheus::IntGauge;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_util::sync::CancellationToken;
use twofactor_api::TwoFactorUser;

/// A reference to a user.
pub type UserRef = ObjectRef<TwoFactorUser>;

/// How urgent a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing is known to be wrong: the user is reconciled when no urgent one waits.
    Later,
    /// Something has changed.
    Now,
}

/// The sending end. It holds each user at most once, so its length is limited by the number of
/// users.
#[derive(Clone, Debug)]
pub struct Queue {
    state: Arc<Mutex<State>>,
    now: UnboundedSender<UserRef>,
    later: UnboundedSender<UserRef>,
    /// Limits the number of non-urgent users in progress. The scheduler behind the queue does not
    /// know urgency, so few of them may be in it.
    slots: Arc<Semaphore>,
    depth: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<UserRef, Urgency>,
    /// Non-urgent users in progress.
    slotted: HashSet<UserRef>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Requests {
    queue: Queue,
    now: UnboundedReceiver<UserRef>,
    later: UnboundedReceiver<UserRef>,
}

impl Queue {
    /// Returns a queue and its receiving end. `depth` shows the length, and `slots` is the number
    /// of users that are reconciled at the same time.
    pub fn new(slots: u16, depth: IntGauge) -> (Self, Requests) {
        let (now_in, now) = mpsc::unbounded_channel();
        let (later_in, later) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(slots.into()));
        let queue = Self { state: Arc::default(), now: now_in, later: later_in, slots, depth };
        (queue.clone(), Requests { queue, now, later })
    }

    /// Requests an urgent reconciliation.
    pub fn push(&self, user: UserRef) {
        self.push_with(user, Urgency::Now);
    }

    /// Requests a reconciliation.
    pub fn push_with(&self, user: UserRef, urgency: Urgency) {
        let mut state = self.state();
        if state.waiting.get(&user).is_none_or(|known| *known < urgency) {
            let sender = if urgency == Urgency::Now { &self.now } else { &self.later };
            // It fails only if the reconciler has ended, and with it the process.
            let _ = sender.send(user.clone());
            state.waiting.insert(user, urgency);
        }
        self.show(&state);
    }

    /// Records that a reconciliation begins. From now on the user can be requested again.
    pub fn taken(&self, user: &UserRef) {
        let mut state = self.state();
        state.waiting.remove(user);
        self.show(&state);
    }

    /// Records that a reconciliation ended, or that the user was deleted.
    pub fn done(&self, user: &UserRef) {
        if self.state().slotted.remove(user) {
            self.slots.add_permits(1);
        }
    }

    /// Whether the user still waits with this urgency.
    fn is_waiting(&self, user: &UserRef, urgency: Urgency) -> bool {
        self.state().waiting.get(user) == Some(&urgency)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &State) {
        self.depth.set(i64::try_from(state.waiting.len()).unwrap_or(i64::MAX));
    }
}

impl Requests {
    /// Returns the next user, urgent ones first.
    async fn next(&mut self) -> Option<UserRef> {
        loop {
            tokio::select! {
                biased;
                user = self.now.recv() => {
                    let user = user?;
                    if self.queue.is_waiting(&user, Urgency::Now) {
                        return Some(user);
                    }
                }
                Some(user) = Self::next_later(&self.queue, &mut self.later) => return Some(user),
            }
        }
    }

    async fn next_later(queue: &Queue, later: &mut UnboundedReceiver<UserRef>) -> Option<UserRef> {
        let slot = queue.slots.acquire().await.ok()?;
        loop {
            let user = later.recv().await?;
            if queue.is_waiting(&user, Urgency::Later) {
                slot.forget();
                queue.state().slotted.insert(user.clone());
                return Some(user);
            }
        }
    }
}

/// The reference to `user`.
pub fn reference(user: &TwoFactorUser) -> UserRef {
    user_ref(&user.namespace().unwrap_or_default(), &user.name_any())
}

/// The reference to the user `name` in `namespace`.
pub fn user_ref(namespace: &str, name: &str) -> UserRef {
    ObjectRef::new(name).within(namespace)
}

/// Returns the requests as a stream that ends at `stop`.
pub fn requests(
    requests: Requests,
    stop: CancellationToken,
) -> impl Stream<Item = Result<UserRef, Infallible>> {
    unfold((requests, stop), |(mut requests, stop)| async move {
        let user = stop.run_until_cancelled(requests.next()).await??;
        Some((Ok(user), (requests, stop)))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(slots: u16) -> (Queue, Requests, IntGauge) {
        let depth = IntGauge::new("depth", "depth").unwrap();
        let (queue, requests) = Queue::new(slots, depth.clone());
        (queue, requests, depth)
    }

    async fn next(requests: &mut Requests) -> Option<String> {
        let next = tokio::time::timeout(Duration::from_millis(20), requests.next()).await;
        next.ok().flatten().map(|user| {
            requests.queue.taken(&user);
            user.name
        })
    }

    #[tokio::test]
    async fn a_user_is_waiting_once_and_can_be_asked_for_again_when_taken() {
        let (queue, mut requests, depth) = queue(1);
        let alice = user_ref("people", "alice");
        queue.push(alice.clone());
        queue.push(alice.clone());
        assert_eq!(depth.get(), 1);
        assert_eq!(next(&mut requests).await.as_deref(), Some("alice"));
        assert_eq!(depth.get(), 0);
        assert_eq!(next(&mut requests).await, None);
        queue.push(alice);
        assert_eq!(next(&mut requests).await.as_deref(), Some("alice"));
    }

    #[tokio::test]
    async fn users_without_urgency_are_reconciled_last_and_few_at_a_time() {
        let (queue, mut requests, _) = queue(1);
        for name in ["a", "b", "c"] {
            queue.push_with(user_ref("people", name), Urgency::Later);
        }
        queue.push(user_ref("people", "new"));
        queue.push(user_ref("people", "a"));
        assert_eq!(next(&mut requests).await.as_deref(), Some("new"));
        assert_eq!(next(&mut requests).await.as_deref(), Some("a"), "it has become urgent");
        assert_eq!(next(&mut requests).await.as_deref(), Some("b"));
        assert_eq!(next(&mut requests).await, None, "one of them is under way");
        queue.push(user_ref("people", "newer"));
        assert_eq!(next(&mut requests).await.as_deref(), Some("newer"));
        queue.done(&user_ref("people", "b"));
        assert_eq!(next(&mut requests).await.as_deref(), Some("c"));
        queue.done(&user_ref("people", "c"));
        assert_eq!(next(&mut requests).await, None);
    }
}
