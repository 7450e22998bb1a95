//! Sends push messages to servers such as ntfy, where the text is the body of a request.

use twofactor_core::realm::RealmRecord;
use twofactor_core::user::{DeliveryMethod, UserDefinition};

use super::error::DeliveryError;
use super::http::{self, HttpClient};
use super::{Channel, Order, Sending};

/// The channel for push messages.
#[derive(Debug, Default)]
pub(super) struct Push {
    client: HttpClient,
}

impl Channel for Push {
    fn method(&self) -> DeliveryMethod {
        DeliveryMethod::Webhook
    }

    fn can_reach(&self, _: &UserDefinition, realm: &RealmRecord) -> bool {
        realm.providers.webhook.is_some()
    }

    fn send<'a>(&'a self, order: &'a Order<'a>) -> Sending<'a> {
        Box::pin(async move {
            let Some(settings) = &order.realm.providers.webhook else {
                return Err(DeliveryError::Misconfigured("no receiver of push messages".into()));
            };
            let client = self.client.of(&settings.receiver).await?;
            let request = client
                .post(settings.receiver.url.expose_secret())
                .header("title", order.texts().subject(&order.values))
                .body(order.texts().sms(&order.values));
            let status = http::send_for_status(request).await?;
            if status.is_success() { Ok(()) } else { Err(http::refusal(status, "")) }
        })
    }
}
