//! The store, with everything counted that it is asked for. Enters and leaves: as in [`Store`];
//! each question leaves its duration in the metrics.

use std::ops::Deref;
use std::time::Instant;

use twofactor_core::decision::{DeliveryReport, Issuance, Issue, Verdict, Verification};
use twofactor_core::limits::Allowance;
use twofactor_core::names::Pseudonym;
use twofactor_store::{RealmSnapshot, Store, StoreError};

use crate::metrics::store::StoreMetrics;

/// A store whose questions are counted. A question is a round trip; what is not asked for here
/// costs none.
#[derive(Clone, Debug)]
pub struct CountedStore {
    store: Store,
    metrics: StoreMetrics,
}

impl CountedStore {
    /// Counts what `store` is asked for.
    #[must_use]
    pub fn new(store: Store, metrics: StoreMetrics) -> Self {
        Self { store, metrics }
    }

    async fn counted<T>(&self, operation: &'static str, question: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let answer = question.await;
        self.metrics.operation(operation, began.elapsed());
        answer
    }

    /// [`Store::record`].
    ///
    /// # Errors
    /// As there.
    pub async fn record(&self, user: &Pseudonym) -> Result<Option<Vec<u8>>, StoreError> {
        self.counted("record", self.store.record(user)).await
    }

    /// [`Store::confirm_absence`].
    ///
    /// # Errors
    /// As there.
    pub async fn confirm_absence(&self, user: &Pseudonym) -> Result<bool, StoreError> {
        self.counted("absence", self.store.confirm_absence(user)).await
    }

    /// [`Store::realm`].
    ///
    /// # Errors
    /// As there.
    pub async fn realm(&self) -> Result<RealmSnapshot, StoreError> {
        self.counted("realm", self.store.realm()).await
    }

    /// [`Store::verify`].
    ///
    /// # Errors
    /// As there.
    pub async fn verify(
        &self,
        user: &Pseudonym,
        request: &Verification,
    ) -> Result<Verdict, StoreError> {
        self.counted("verify", self.store.verify(user, request)).await
    }

    /// [`Store::issue`].
    ///
    /// # Errors
    /// As there.
    pub async fn issue(&self, user: &Pseudonym, request: &Issuance) -> Result<Issue, StoreError> {
        self.counted("issue", self.store.issue(user, request)).await
    }

    /// [`Store::record_delivery`].
    ///
    /// # Errors
    /// As there.
    pub async fn record_delivery(
        &self,
        user: &Pseudonym,
        report: &DeliveryReport,
    ) -> Result<(), StoreError> {
        self.counted("conclude", self.store.record_delivery(user, report)).await
    }

    /// [`Store::count_delivery`].
    ///
    /// # Errors
    /// As there.
    pub async fn count_delivery(&self, most: u32) -> Result<Allowance, StoreError> {
        self.counted("count-delivery", self.store.count_delivery(most)).await
    }
}

impl Deref for CountedStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}
