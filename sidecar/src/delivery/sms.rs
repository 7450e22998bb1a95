//! Sends codes as text messages over Twilio's Messages API. A success means that Twilio accepted
//! the message, not that a phone shows it.

use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use twofactor_core::provider::{TwilioSender, TwilioSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::{DeliveryMethod, PhoneNumber, UserDefinition};

use super::error::DeliveryError;
use super::http::{self, Answer, HttpClient};
use super::{Channel, Order, Sending};

/// The channel for text messages.
#[derive(Debug, Default)]
pub(super) struct Sms {
    client: HttpClient,
}

/// The members of Twilio's answers that are used.
#[derive(Default, Deserialize)]
struct TwilioAnswer {
    /// The id of an accepted message.
    sid: Option<String>,
    /// Why an accepted message will not be sent.
    error_code: Option<u32>,
    /// Why a message was not accepted.
    code: Option<u32>,
}

impl Channel for Sms {
    fn method(&self) -> DeliveryMethod {
        DeliveryMethod::Sms
    }

    fn can_reach(&self, user: &UserDefinition, realm: &RealmRecord) -> bool {
        user.phone_number.is_some() && realm.providers.twilio.is_some()
    }

    fn send<'a>(&'a self, order: &'a Order<'a>) -> Sending<'a> {
        Box::pin(async move {
            let (Some(number), Some(settings)) =
                (&order.user.phone_number, &order.realm.providers.twilio)
            else {
                return Err(DeliveryError::Misconfigured("no number, or no account with Twilio"));
            };
            let client = self.client.of(&settings.api).await?;
            let url = format!(
                "{}/2010-04-01/Accounts/{}/Messages.json",
                settings.api.url.expose_secret(),
                settings.account_sid
            );
            let request = client
                .post(url)
                .basic_auth(&settings.account_sid, Some(settings.auth_token.expose_secret()))
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form(settings, number, &order.realm.message.sms(&order.values)));
            evaluate(&http::send(request).await?)
        })
    }
}

fn form(settings: &TwilioSettings, to: &PhoneNumber, text: &str) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("To", to.as_str());
    match &settings.sender {
        TwilioSender::PhoneNumber(number) => form.append_pair("From", number.as_str()),
        TwilioSender::MessagingService(sid) => form.append_pair("MessagingServiceSid", sid),
    };
    form.append_pair("Body", text);
    form.finish()
}

/// Errors contain Twilio's codes and not its sentences, because those repeat the phone number.
fn evaluate(answer: &Answer) -> Result<(), DeliveryError> {
    let parsed =
        answer.body.as_deref().and_then(|body| serde_json::from_slice::<TwilioAnswer>(body).ok());
    if !answer.status.is_success() {
        let code = parsed.unwrap_or_default().code;
        let detail = code.map(|code| format!(", Twilio's error {code}")).unwrap_or_default();
        return Err(http::refusal(answer.status, &detail));
    }
    match parsed {
        Some(TwilioAnswer { error_code: Some(code), .. }) => {
            Err(DeliveryError::Refused(format!("Twilio's error {code}")))
        }
        Some(TwilioAnswer { sid: Some(_), .. }) => Ok(()),
        _ => Err(DeliveryError::Broken("the answer is not one of Twilio's".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, body: &str) -> &'static str {
        let status = reqwest::StatusCode::from_u16(status).unwrap();
        let answer = Answer { status, body: Some(body.as_bytes().to_vec()) };
        evaluate(&answer).map_or_else(|error| error.outcome(), |()| "sent")
    }

    #[test]
    fn only_an_answer_of_twilio_is_a_success() {
        assert_eq!(outcome(201, r#"{"sid":"SM1","status":"queued","error_code":null}"#), "sent");
        assert_eq!(
            outcome(201, r#"{"sid":"SM1","status":"failed","error_code":30003}"#),
            "refused"
        );
        assert_eq!(outcome(200, "<html>welcome to the hotel</html>"), "broken-off");
        assert_eq!(outcome(200, "[]"), "broken-off");
        assert_eq!(
            outcome(400, r#"{"code":21211,"message":"The 'To' number +1 is not valid"}"#),
            "refused"
        );
    }

    #[test]
    fn an_error_contains_twilios_code_and_not_its_words() {
        let body = br#"{"code":21211,"message":"+15005550001 is not a number"}"#.to_vec();
        let error =
            evaluate(&Answer { status: reqwest::StatusCode::BAD_REQUEST, body: Some(body) })
                .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the provider refused the message: HTTP 400, Twilio's error 21211"
        );
    }
}
