//! Gives codes to a webhook, signed by the Standard Webhooks specification, for push, chat and
//! other ways of delivery.

use reqwest::header::CONTENT_TYPE;
use serde::Serialize;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::{DeliveryMethod, EmailAddress, PhoneNumber, UserDefinition};

use super::error::DeliveryError;
use super::http::{self, HttpClient};
use super::{Channel, Order, Sending, rfc3339};

/// The type of the event.
const EVENT: &str = "otp.requested";

/// The channel for webhooks.
#[derive(Debug, Default)]
pub(super) struct Webhook {
    client: HttpClient,
}

/// The body of a request.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    username: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phone_number: Option<&'a str>,
    code: &'a str,
    expires_at: &'a str,
    issuer: &'a str,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
    text: String,
}

impl Channel for Webhook {
    fn method(&self) -> DeliveryMethod {
        DeliveryMethod::Webhook
    }

    fn can_reach(&self, _: &UserDefinition, realm: &RealmRecord) -> bool {
        realm.providers.webhook.is_some()
    }

    fn send<'a>(&'a self, order: &'a Order<'a>) -> Sending<'a> {
        Box::pin(async move {
            let Some(settings) = &order.realm.providers.webhook else {
                return Err(DeliveryError::Misconfigured("no webhook".into()));
            };
            let body = serde_json::to_vec(&event(order))
                .map_err(|_| DeliveryError::Misconfigured("the message".into()))?;
            let timestamp = order.message.now.seconds();
            // The same for the same code, so that a receiver recognizes another attempt.
            let id = settings.secrets.message_id(&[
                order.values.username.as_bytes(),
                order.values.service.as_bytes(),
                order.values.code.expose_secret().as_bytes(),
                order.values.expires_at.as_bytes(),
            ]);
            let client = self.client.of(&settings.receiver).await?;
            let request = client
                .post(settings.receiver.url.expose_secret())
                .header(CONTENT_TYPE, "application/json")
                .header("webhook-signature", settings.secrets.sign(&id, timestamp, &body))
                .header("webhook-id", id)
                .header("webhook-timestamp", timestamp)
                .body(body);
            let status = http::send_for_status(request).await?;
            if status.is_success() { Ok(()) } else { Err(http::refusal(status, "")) }
        })
    }
}

fn event<'a>(order: &Order<'a>) -> Event<'a> {
    let values = &order.values;
    Event {
        kind: EVENT,
        timestamp: rfc3339(order.message.now),
        data: Data {
            username: values.username,
            email: order.user.email.as_ref().map(EmailAddress::as_str),
            phone_number: order.user.phone_number.as_ref().map(PhoneNumber::as_str),
            code: values.code.expose_secret(),
            expires_at: values.expires_at,
            issuer: values.issuer,
            service: values.service,
            context: values.context,
            text: order.texts().text(values).trim_end().to_owned(),
        },
    }
}
