//! What generate and verify work with. Enters: the parts, put together once for each set of
//! credentials. Leaves: the present value, which routes share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use twofactor_core::decision::Undecided;
use twofactor_core::names::Caller;
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::seal::Revision;
use twofactor_core::user::UserDefinition;
use twofactor_store::{Decisions, StoreError};

use crate::delivery::{Delivery, DeliveryError, Message};
use crate::metrics::Metrics;
use crate::otp::background::Work;
use crate::otp::records::{CurrentUser, Records};
use crate::otp::tokens::PublicKeys;
use crate::refusal::Refusal;

/// How long a decision may take in all, every reading and repeating included: a client has its 503
/// in a second.
pub const DECISION_TIMEOUT: Duration = Duration::from_millis(900);

/// How often a decision is asked for again on new ground: a record that changed, a clock that was
/// off.
pub const ATTEMPTS: usize = 4;

/// The parts of a running sidecar.
#[derive(Debug)]
pub struct Service {
    /// Decides and remembers.
    pub store: Decisions,
    /// Users and the realm.
    pub records: Records,
    /// Sends codes.
    pub delivery: Delivery,
    /// The namespace that this sidecar asks for.
    pub caller: Caller,
    /// Whether answers contain the code: for development only.
    pub expose_codes: bool,
    /// Counts.
    pub metrics: Metrics,
    /// What goes on when the one who asked is gone.
    pub work: Work,
    /// What tokens can be checked with.
    pub public_keys: Arc<PublicKeys>,
}

/// The service that the next request is answered by. Requests under way end with the one that they
/// began with.
#[derive(Clone, Debug)]
pub struct Current(Arc<ArcSwap<Service>>);

impl Current {
    /// Begins with `service`.
    #[must_use]
    pub fn new(service: Service) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(service)))
    }

    /// The present service.
    #[must_use]
    pub fn load(&self) -> Arc<Service> {
        self.0.load_full()
    }

    /// Goes over to another service.
    pub fn replace(&self, service: Service) {
        self.0.store(Arc::new(service));
    }
}

impl Service {
    /// Whether `realm` lets this sidecar's namespace in.
    #[must_use]
    pub fn is_allowed(&self, realm: &RealmRecord) -> bool {
        realm.callers.as_ref().is_none_or(|callers| callers.contains(self.caller.as_str()))
    }

    /// The realm, if it lets this sidecar's namespace in: asked before anything is looked up or
    /// decided.
    ///
    /// # Errors
    /// [`Refusal::NamespaceNotAllowed`] when it does not; [`Refusal::Unavailable`] when that is not known.
    pub async fn realm(&self) -> Result<Arc<(Revision, RealmRecord)>, Refusal> {
        let realm = self.records.realm().await?;
        if self.is_allowed(&realm.1) { Ok(realm) } else { Err(Refusal::NamespaceNotAllowed) }
    }

    /// Whether there is a code to send to this user, and a way to send it.
    #[must_use]
    pub fn can_send(&self, user: &UserRecord, realm: &RealmRecord) -> bool {
        user.seed.is_some() && self.delivery.can_reach(&user.definition, realm)
    }

    /// Sends a message to a user whom [`Service::can_send`] says it can be sent to, and counts
    /// that.
    ///
    /// # Errors
    /// When the provider does not take it.
    pub async fn deliver(
        &self,
        user: &UserDefinition,
        realm: &RealmRecord,
        message: &Message<'_>,
    ) -> Result<(), DeliveryError> {
        let began = Instant::now();
        let result = self.delivery.deliver(user, realm, message).await;
        let outcome = result.as_ref().map_or_else(DeliveryError::outcome, |()| "sent");
        self.metrics.delivery(user.delivery_method.name(), outcome, began.elapsed());
        result
    }

    /// What the next attempt is made with, after the store decided nothing on `user` for the reason
    /// `why`.
    ///
    /// # Errors
    /// When there is nothing to be had that a decision could be made on.
    pub async fn new_ground(
        &self,
        user: CurrentUser,
        why: StoreError,
    ) -> Result<CurrentUser, Refusal> {
        match why {
            StoreError::Undecided(Undecided::Stale { current }) => {
                self.metrics.store().stale_record();
                let user = self.records.reload_enabled(user.pseudonym).await?;
                if user.revision < current { Err(Refusal::Unavailable) } else { Ok(user) }
            }
            // The user was removed, or the store has lost them: reading again tells which.
            StoreError::Undecided(Undecided::NoState) => {
                self.records.reload(user.pseudonym).await?;
                Err(Refusal::Unavailable)
            }
            // The store has learned the difference; the next attempt is computed with it.
            StoreError::Undecided(Undecided::ClockOff { .. }) => Ok(user),
            error => Err(error.into()),
        }
    }
}

/// Bounds the time that a decision takes.
///
/// # Errors
/// [`Refusal::Unavailable`] when the time is over; otherwise what `work` says.
pub async fn within_bound<T, E: From<Refusal>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(DECISION_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(Refusal::Unavailable.into()))
}
