//! Holds what requests are answered with, one set for each set of credentials.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use twofactor_core::names::Caller;
use twofactor_core::realm::RealmRecord;
use twofactor_core::record::UserRecord;
use twofactor_core::user::UserDefinition;
use twofactor_store::Decisions;

use crate::delivery::{Delivery, DeliveryError, Message};
use crate::metrics::Metrics;
use crate::otp::background::BackgroundWork;
use crate::otp::records::{Answers, Realm, Records};
use crate::otp::tokens::PublicKeys;
use crate::refusal::Refusal;

/// The parts of a running sidecar.
#[derive(Debug)]
pub struct Service {
    pub store: Decisions,
    pub records: Records,
    pub delivery: Delivery,
    /// The namespace of this sidecar.
    pub caller: Caller,
    /// Whether answers contain the code, for development only.
    pub expose_codes: bool,
    pub metrics: Metrics,
    pub background: BackgroundWork,
    /// The keys that tokens can be checked with.
    pub public_keys: Arc<PublicKeys>,
}

/// The service that answers the next request. A request under way ends with the service that it
/// began with.
#[derive(Clone, Debug)]
pub struct CurrentService(Arc<ArcSwap<Service>>);

impl CurrentService {
    pub fn new(service: Service) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(service)))
    }

    pub fn load(&self) -> Arc<Service> {
        self.0.load_full()
    }

    pub fn replace(&self, service: Service) {
        self.0.store(Arc::new(service));
    }
}

impl Service {
    /// Whether `realm` allows this sidecar's namespace.
    pub fn is_allowed(&self, realm: &RealmRecord) -> bool {
        realm.callers.as_ref().is_none_or(|callers| callers.contains(self.caller.as_str()))
    }

    /// Returns the realm if it allows this sidecar's namespace, and an operator has worked within
    /// the time that the realm demands. Requests ask for it before anything is looked up or
    /// decided.
    pub async fn realm(&self) -> Result<Arc<Realm>, Refusal> {
        let realm = self.records.realm().await?;
        if !self.is_allowed(&realm.record) {
            return Err(Refusal::NamespaceNotAllowed);
        }
        // A withdrawn namespace or a disabled user would not be known.
        if self.records.is_stale(&realm.record).await {
            return Err(Refusal::Unavailable);
        }
        Ok(realm)
    }

    /// Whether the user has a seed, and a way to get codes.
    pub fn can_send(&self, user: &UserRecord, realm: &RealmRecord) -> bool {
        user.seed.is_some() && self.delivery.can_reach(&user.definition, realm)
    }

    /// Sends a message to a user who can get it ([`Service::can_send`]), and counts the delivery.
    /// With uniform answers, only what fails for every user is counted here.
    pub async fn deliver(
        &self,
        user: &UserDefinition,
        realm: &Realm,
        message: &Message<'_>,
    ) -> Result<(), DeliveryError> {
        let began = Instant::now();
        let result = self.delivery.deliver(user, &realm.record, message).await;
        let (channel, is_uniform) =
            (user.delivery_method.name(), realm.answers == Answers::Uniform);
        match &result {
            Ok(()) if !is_uniform => self.metrics.delivery(channel, "sent", Some(began.elapsed())),
            Err(error) if !is_uniform => {
                self.metrics.delivery(channel, error.outcome(), Some(began.elapsed()));
            }
            Err(error) if !matches!(error, DeliveryError::Refused(_)) => {
                self.metrics.delivery(channel, error.outcome(), None);
            }
            _ => {}
        }
        result
    }

    /// The store for what only users cause. With uniform answers, its operations are not counted,
    /// because the metrics would show who is a user.
    pub fn store_of_users(&self, realm: &Realm) -> Decisions {
        match realm.answers {
            Answers::Precise => self.store.clone(),
            Answers::Uniform => self.store.without_observer(),
        }
    }
}
