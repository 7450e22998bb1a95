//! Queues the users that have to be reconciled: urgent ones first, each by one task at a time.
//!
//! A user waits, runs, is due later, or is parked until its realm is ready in Redis.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::user_ref::{UserRef, user_ref};

/// Number of waiting users for which room is kept.
const LINE: usize = 1024;

/// How urgent a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing is known to be wrong: the user is reconciled when no urgent one waits.
    Later,
    /// Something has changed.
    Now,
}

/// When a user is reconciled again without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Never.
    Never,
    /// After a delay.
    After(Duration, Urgency),
    /// When the realm of the user is ready, or after a delay if there is one.
    Parked(Option<Duration>),
}

/// The queue. It holds each user at most once, so its length is limited by the number of users.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    /// Wakes the reconciler.
    changed: Notify,
    depth: IntGauge,
    parked: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<UserRef, Entry>,
    /// Users that wait. A user that has been taken or has become urgent since is skipped.
    now: VecDeque<UserRef>,
    later: VecDeque<UserRef>,
    due: BTreeSet<(Instant, UserRef)>,
    /// By namespace.
    parked: HashMap<Arc<str>, HashSet<Arc<str>>>,
    waiting_users: usize,
    parked_users: usize,
}

/// The state of one user.
#[derive(Debug, Default)]
struct Entry {
    waiting: Option<Urgency>,
    /// The urgency with which it was taken.
    running: Option<Urgency>,
    /// The urgency that it has when its realm is ready.
    parked: Option<Urgency>,
    due: Option<(Instant, Urgency)>,
}

impl Entry {
    const fn is_unused(&self) -> bool {
        self.waiting.is_none()
            && self.running.is_none()
            && self.parked.is_none()
            && self.due.is_none()
    }
}

impl Queue {
    /// Returns an empty queue. `depth` shows how many users wait, `parked` how many are parked.
    pub fn new(depth: IntGauge, parked: IntGauge) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), depth, parked }
    }

    /// Requests an urgent reconciliation.
    pub fn push(&self, user: UserRef) {
        self.push_with(user, Urgency::Now);
    }

    /// Requests a reconciliation.
    pub fn push_with(&self, user: UserRef, urgency: Urgency) {
        self.change(|state| state.request(user, urgency));
    }

    /// Waits for a user to reconcile. The caller must pass it to [`Queue::finished`]. No user is
    /// lost if the call is cancelled.
    pub async fn next(&self) -> UserRef {
        loop {
            let (user, due) = {
                let mut state = self.state();
                let next = state.next(Instant::now());
                self.show(&state);
                next
            };
            match (user, due) {
                (Some(user), _) => return user,
                (None, Some(due)) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(due) => {}
                },
                (None, None) => self.changed.notified().await,
            }
        }
    }

    /// Records that a reconciliation has ended.
    pub fn finished(&self, user: &UserRef, next: Next) {
        self.change(|state| state.finish(user, next, Instant::now()));
    }

    /// Forgets a user that was deleted.
    pub fn forget(&self, user: &UserRef) {
        self.change(|state| state.forget(user));
    }

    /// Requests the parked users of a namespace.
    pub fn wake(&self, namespace: &str) {
        self.change(|state| state.wake(namespace));
    }

    /// The namespaces of parked users.
    pub fn parked_namespaces(&self) -> Vec<Arc<str>> {
        self.state().parked.keys().cloned().collect()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        self.show(&state);
        drop(state);
        self.changed.notify_one();
    }

    fn show(&self, state: &State) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.depth.set(number(state.waiting_users));
        self.parked.set(number(state.parked_users));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn request(&mut self, user: UserRef, urgency: Urgency) {
        self.unpark(&user);
        let entry = self.users.entry(user.clone()).or_default();
        if entry.waiting >= Some(urgency) {
            return;
        }
        self.waiting_users += usize::from(entry.waiting.is_none());
        entry.waiting = Some(urgency);
        // A running user is queued at the end of its reconciliation.
        if entry.running.is_none() {
            self.line(urgency).push_back(user);
        }
    }

    fn line(&mut self, urgency: Urgency) -> &mut VecDeque<UserRef> {
        if urgency == Urgency::Now { &mut self.now } else { &mut self.later }
    }

    /// Returns the user to reconcile, and when the first user is due.
    fn next(&mut self, now: Instant) -> (Option<UserRef>, Option<Instant>) {
        self.request_due(now);
        (self.take(), self.due.first().map(|(due, _)| *due))
    }

    fn request_due(&mut self, now: Instant) {
        while let Some((due, user)) = self.due.pop_first() {
            if due > now {
                self.due.insert((due, user));
                return;
            }
            let urgency = self.users.get_mut(&user).and_then(|entry| entry.due.take());
            self.request(user, urgency.map_or(Urgency::Now, |(_, urgency)| urgency));
        }
    }

    fn take(&mut self) -> Option<UserRef> {
        for urgency in [Urgency::Now, Urgency::Later] {
            while let Some(user) = self.line(urgency).pop_front() {
                let Some(entry) = self.users.get_mut(&user) else { continue };
                if entry.waiting != Some(urgency) || entry.running.is_some() {
                    continue;
                }
                (entry.waiting, entry.running) = (None, Some(urgency));
                let due = entry.due.take();
                self.waiting_users -= 1;
                if let Some((due, _)) = due {
                    self.due.remove(&(due, user.clone()));
                }
                return Some(user);
            }
            // The room that all users needed at the start is given back.
            self.line(urgency).shrink_to(LINE);
        }
        None
    }

    fn finish(&mut self, user: &UserRef, next: Next, now: Instant) {
        let Some((user, _)) = self.users.get_key_value(user) else { return };
        let user = user.clone();
        let Some(entry) = self.users.get_mut(&user) else { return };
        let Some(urgency) = entry.running.take() else { return };
        if let Some(waiting) = entry.waiting {
            self.line(waiting).push_back(user);
            return;
        }
        let due = match next {
            Next::Never => None,
            Next::After(delay, urgency) => Some((delay, urgency)),
            Next::Parked(delay) => {
                entry.parked = Some(urgency);
                let names = self.parked.entry(user.namespace.clone()).or_default();
                self.parked_users += usize::from(names.insert(user.name.clone()));
                delay.map(|delay| (delay, urgency))
            }
        };
        if let Some((delay, urgency)) = due {
            let due = now + delay;
            entry.due = Some((due, urgency));
            self.due.insert((due, user));
        } else if entry.is_unused() {
            self.users.remove(&user);
        }
    }

    fn forget(&mut self, user: &UserRef) {
        self.unpark(user);
        let Some(entry) = self.users.get_mut(user) else { return };
        self.waiting_users -= usize::from(entry.waiting.take().is_some());
        let due = entry.due.take();
        // A user that runs stays, so that another one of its name does not run at the same time.
        if entry.running.is_none() {
            self.users.remove(user);
        }
        if let Some((due, _)) = due {
            self.due.remove(&(due, user.clone()));
        }
    }

    fn wake(&mut self, namespace: &str) {
        let names = self.parked.get(namespace).into_iter().flatten();
        let users: Vec<UserRef> = names.map(|name| user_ref(namespace, name)).collect();
        for user in users {
            let urgency = self.users.get(&user).and_then(|entry| entry.parked);
            self.request(user, urgency.unwrap_or(Urgency::Later));
        }
    }

    fn unpark(&mut self, user: &UserRef) {
        if let Some(entry) = self.users.get_mut(user) {
            entry.parked = None;
        }
        if let Some(names) = self.parked.get_mut(&user.namespace) {
            self.parked_users -= usize::from(names.remove(&user.name));
            if names.is_empty() {
                self.parked.remove(&user.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> UserRef {
        user_ref("people", "alice")
    }

    /// A queue whose time the test moves.
    struct Timed {
        state: State,
        now: Instant,
    }

    impl Timed {
        fn new() -> Self {
            Self { state: State::default(), now: Instant::now() }
        }

        fn push(&mut self, name: &str, urgency: Urgency) {
            self.state.request(user_ref("people", name), urgency);
        }

        fn next(&mut self) -> Option<String> {
            self.state.next(self.now).0.map(|user| user.name.as_ref().to_owned())
        }

        fn finish(&mut self, next: Next) {
            self.state.finish(&alice(), next, self.now);
        }

        /// Runs alice once.
        fn run(&mut self, next: Next) {
            self.push("alice", Urgency::Now);
            assert_eq!(self.next().as_deref(), Some("alice"));
            self.finish(next);
        }

        fn is_empty(&self) -> bool {
            let State { users, due, parked, waiting_users, parked_users, .. } = &self.state;
            users.is_empty()
                && due.is_empty()
                && parked.is_empty()
                && (*waiting_users, *parked_users) == (0, 0)
        }
    }

    #[test]
    fn a_user_waits_once_and_runs_once() {
        let mut queue = Timed::new();
        queue.push("alice", Urgency::Now);
        queue.push("alice", Urgency::Now);
        assert_eq!(queue.state.waiting_users, 1);
        assert_eq!(queue.next().as_deref(), Some("alice"));
        assert_eq!((queue.state.waiting_users, queue.next()), (0, None));
        queue.push("alice", Urgency::Now);
        assert_eq!(queue.next(), None, "it still runs");
        queue.finish(Next::Never);
        assert_eq!(queue.next().as_deref(), Some("alice"));
        queue.finish(Next::Never);
        assert!(queue.is_empty());
    }

    #[test]
    fn urgent_users_come_first() {
        let mut queue = Timed::new();
        queue.push("a", Urgency::Later);
        queue.push("b", Urgency::Later);
        queue.push("new", Urgency::Now);
        queue.push("b", Urgency::Now);
        for expected in ["new", "b", "a"] {
            assert_eq!(queue.next().as_deref(), Some(expected));
        }
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn a_user_is_due_after_its_delay_unless_it_was_reconciled_or_deleted_before() {
        let (mut queue, delay) = (Timed::new(), Duration::from_secs(5));
        queue.run(Next::After(delay, Urgency::Later));
        assert_eq!(queue.next(), None);
        queue.now += delay;
        assert_eq!(queue.next().as_deref(), Some("alice"));
        queue.finish(Next::After(delay, Urgency::Now));
        queue.run(Next::Never);
        queue.now += delay;
        assert_eq!(queue.next(), None);
        queue.run(Next::After(delay, Urgency::Now));
        queue.state.forget(&alice());
        queue.now += delay;
        assert_eq!(queue.next(), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_parked_user_waits_for_its_realm_a_request_or_its_delay() {
        let (mut queue, delay) = (Timed::new(), Duration::from_secs(2));
        queue.run(Next::Parked(None));
        queue.state.wake("others");
        assert_eq!((queue.next(), queue.state.parked_users), (None, 1));
        queue.state.wake("people");
        assert_eq!(queue.next().as_deref(), Some("alice"));
        queue.finish(Next::Parked(None));
        queue.run(Next::Parked(Some(delay)));
        assert_eq!(queue.next(), None);
        queue.now += delay;
        assert_eq!(queue.next().as_deref(), Some("alice"));
        queue.finish(Next::Parked(None));
        queue.state.forget(&alice());
        assert!(queue.is_empty());
    }

    #[test]
    fn a_user_that_is_deleted_while_it_runs_does_not_run_twice() {
        let mut queue = Timed::new();
        queue.push("alice", Urgency::Now);
        assert!(queue.next().is_some());
        queue.state.forget(&alice());
        queue.push("alice", Urgency::Now);
        assert_eq!(queue.next(), None);
        queue.finish(Next::Never);
        assert_eq!(queue.next().as_deref(), Some("alice"));
    }
}
