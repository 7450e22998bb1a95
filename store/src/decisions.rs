//! Defines the interface that a sidecar uses: records and decisions.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use twofactor_core::decision::{DeliveryReport, Issuance, Issue, Verdict, Verification};
use twofactor_core::limits::Allowance;
use twofactor_core::names::{Caller, Pseudonym};
use twofactor_core::time::UnixMillis;

use crate::redis::RedisStore;
use crate::{RealmRead, Store, StoreError};

/// Compares a record with the beginning of the one that was read last.
pub(crate) fn compare(sealed: Option<Vec<u8>>, beginning: Option<&[u8]>) -> RealmRead {
    match sealed {
        None => RealmRead::Absent,
        Some(sealed) if beginning.is_some_and(|known| sealed.starts_with(known)) => {
            RealmRead::Unchanged
        }
        Some(sealed) => RealmRead::Changed(sealed),
    }
}

/// Is notified of every operation of [`Decisions`]. Each is one round trip to Redis.
pub trait Observer: Debug + Send + Sync {
    /// An operation has ended, with an answer or an error.
    fn operation(&self, name: &'static str, duration: Duration);
}

#[derive(Debug)]
struct Unobserved;

impl Observer for Unobserved {
    fn operation(&self, _: &'static str, _: Duration) {}
}

/// The operations that answer requests of services. Each of them is reported to the observer.
#[derive(Clone, Debug)]
pub struct Decisions {
    store: Store,
    observer: Arc<dyn Observer>,
}

impl Decisions {
    /// Decides in `store` and reports each operation to `observer`.
    #[must_use]
    pub fn new(store: Store, observer: Arc<dyn Observer>) -> Self {
        Self { store, observer }
    }

    /// Decides in `store` and reports to no observer.
    #[must_use]
    pub fn unobserved(store: Store) -> Self {
        Self::new(store, Arc::new(Unobserved))
    }

    /// The same store, whose operations are reported to no observer.
    #[must_use]
    pub fn without_observer(&self) -> Self {
        Self::unobserved(self.store.clone())
    }

    /// The Redis store, unless the store is in memory. Its public methods answer no requests, so
    /// they are not observed.
    #[must_use]
    pub fn redis(&self) -> Option<&RedisStore> {
        self.store.redis()
    }

    /// The current time of the store's clock, as far as this process knows it.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        match &self.store {
            Store::Memory(store) => store.now(),
            Store::Redis(store) => store.now(),
        }
    }

    /// From now on, a code is accepted only after this number of replicas has acknowledged the
    /// decision.
    pub fn require_replicas(&self, replicas: u8) {
        if let Store::Redis(store) = &self.store {
            store.require_replicas(replicas);
        }
    }

    /// Reads the sealed record of a user.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn record(&self, user: &Pseudonym) -> Result<Option<Vec<u8>>, StoreError> {
        self.observed("record", async {
            match &self.store {
                Store::Memory(store) => Ok(store.record(user)),
                Store::Redis(store) => store.record(user).await,
            }
        })
        .await
    }

    /// Returns true if the user certainly does not exist: the realm is completely published on a
    /// checked node, and this node has neither a record nor a state of the user.
    ///
    /// # Errors
    /// If Redis does not answer, or the realm is not completely published.
    pub async fn confirm_absence(&self, user: &Pseudonym) -> Result<bool, StoreError> {
        self.observed("absence", async {
            match &self.store {
                Store::Memory(store) => store.confirm_absence(user),
                Store::Redis(store) => store.confirm_absence(user).await,
            }
        })
        .await
    }

    /// Reads how long ago an operator has last shown that it works. Returns nothing if that is not
    /// known. The store in memory has its publisher in the same process.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn heartbeat_age(&self) -> Result<Option<Duration>, StoreError> {
        self.observed("heartbeat", async {
            match &self.store {
                Store::Memory(_) => Ok(Some(Duration::ZERO)),
                Store::Redis(store) => store.heartbeat_age().await,
            }
        })
        .await
    }

    /// Reads the realm's record, unless it begins with `beginning`, the first
    /// [`twofactor_core::seal::BEGINNING_BYTES`] of the record that was read last.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn realm(&self, beginning: Option<&[u8]>) -> Result<RealmRead, StoreError> {
        self.observed("realm", async {
            match &self.store {
                Store::Memory(store) => Ok(compare(store.realm().sealed, beginning)),
                Store::Redis(store) => match beginning {
                    Some(beginning) => store.changed_realm(beginning).await,
                    None => Ok(compare(store.realm().await?.sealed, None)),
                },
            }
        })
        .await
    }

    /// Decides whether a submitted code is accepted.
    ///
    /// # Errors
    /// If the preconditions of a decision do not hold, or Redis does not answer.
    pub async fn verify(
        &self,
        user: &Pseudonym,
        request: &Verification,
    ) -> Result<Verdict, StoreError> {
        self.observed("verify", async {
            match &self.store {
                Store::Memory(store) => store.verify(user, request),
                Store::Redis(store) => store.verify(user, request).await,
            }
        })
        .await
    }

    /// Decides whether a code may be delivered, and adds it to the OTP log.
    ///
    /// # Errors
    /// If the preconditions of a decision do not hold, or Redis does not answer.
    pub async fn issue(&self, user: &Pseudonym, request: &Issuance) -> Result<Issue, StoreError> {
        self.observed("issue", async {
            match &self.store {
                Store::Memory(store) => store.issue(user, request),
                Store::Redis(store) => store.issue(user, request).await,
            }
        })
        .await
    }

    /// Records what became of a delivery in the user's history.
    ///
    /// # Errors
    /// If the user was removed, or Redis does not answer.
    pub async fn record_delivery(
        &self,
        user: &Pseudonym,
        report: &DeliveryReport,
    ) -> Result<(), StoreError> {
        self.observed("conclude", async {
            match &self.store {
                Store::Memory(store) => store.record_delivery(user, report),
                Store::Redis(store) => store.record_delivery(user, report).await,
            }
        })
        .await
    }

    /// Counts one delivery of the realm for `caller`, unless the hourly limit `most` or the
    /// caller's share `most_own` of it is used up.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn count_delivery(
        &self,
        caller: &Caller,
        most: u32,
        most_own: u32,
    ) -> Result<Allowance, StoreError> {
        self.observed("count-delivery", async {
            match &self.store {
                Store::Memory(store) => Ok(store.count_delivery(caller, most, most_own)),
                Store::Redis(store) => store.count_delivery(caller, most, most_own).await,
            }
        })
        .await
    }

    async fn observed<T>(&self, name: &'static str, operation: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let answer = operation.await;
        self.observer.operation(name, began.elapsed());
        answer
    }
}
