//! Holds the mark with which this operator owns the installation's data in Redis: what the Lease
//! holds, and what it is to hold next. No I/O.
//!
//! The task of the Lease writes the mark into the Lease, the monitor of Redis writes what the Lease
//! holds into Redis.

use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use twofactor_core::owner::OwnerMark;

/// The ownership of Redis by this process.
#[derive(Debug)]
pub struct RedisOwner {
    /// The Lease, which Events are about.
    pub lease: ObjectReference,
    name: String,
    marks: Mutex<Marks>,
    owned: watch::Sender<bool>,
    lost: CancellationToken,
}

#[derive(Debug, Default)]
struct Marks {
    /// What the Lease holds.
    stored: Option<OwnerMark>,
    /// What it is to hold after the next renewal.
    next: Option<OwnerMark>,
    /// The lineage that an administrator wants to be replaced.
    replaces: Option<String>,
}

impl RedisOwner {
    /// Owns nothing yet. `name` is that of the Lease.
    pub fn new(namespace: &str, name: &str) -> Self {
        let lease = ObjectReference {
            api_version: Some("coordination.k8s.io/v1".to_owned()),
            kind: Some("Lease".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        Self {
            lease,
            name: format!("{namespace}/{name}"),
            marks: Mutex::default(),
            owned: watch::Sender::new(false),
            lost: CancellationToken::new(),
        }
    }

    /// Namespace and name of the Lease. Operators with different Leases share an installation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Records what the Lease held before this process took it, or a new lineage.
    pub fn found(&self, mark: OwnerMark) {
        *self.marks() = Marks { next: Some(mark), ..Marks::default() };
    }

    /// What the Lease is to hold.
    pub fn to_store(&self) -> Option<OwnerMark> {
        self.marks().next.clone()
    }

    /// Records that this process has written the Lease.
    pub fn stored(&self, mark: OwnerMark) {
        self.marks().stored = Some(mark);
    }

    /// What the Lease holds. Redis may hold it too.
    pub fn mark(&self) -> Option<OwnerMark> {
        self.marks().stored.clone()
    }

    /// Sets what the Lease holds after the next renewal.
    pub fn continue_with(&self, mark: OwnerMark) {
        self.marks().next = Some(mark);
    }

    /// Records the lineage that an administrator wants to be replaced.
    pub fn replace(&self, lineage: Option<String>) {
        self.marks().replaces = lineage;
    }

    /// Whether an administrator wants this lineage to be replaced.
    pub fn replaces(&self, lineage: &str) -> bool {
        self.marks().replaces.as_deref() == Some(lineage)
    }

    /// Records that Redis holds the mark of this process.
    pub fn set_owned(&self) {
        self.owned.send_replace(true);
    }

    /// Resolves when this process owns the data for the first time.
    pub async fn wait_owned(&self) {
        // The sender is part of `self`, so it is not dropped meanwhile.
        let _ = self.owned.subscribe().wait_for(|owned| *owned).await;
    }

    /// Records that another operator has taken the data over.
    pub fn lose(&self) {
        self.lost.cancel();
    }

    /// Resolves when another operator has taken the data over. From then on this process must not
    /// write to Redis, and it should exit.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.lost.clone().cancelled_owned()
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
