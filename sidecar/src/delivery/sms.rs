//! Text messages over Twilio's Messages API. Enters: an account, a number and a message. Leaves:
//! the message, accepted by Twilio; whether a phone shows it, nobody here learns.

use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use twofactor_core::provider::{TwilioSender, TwilioSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::{DeliveryMethod, PhoneNumber, UserDefinition};

use super::error::DeliveryError;
use super::http::{self, Answer, HttpClient};
use super::{Channel, Order, Sending};

/// Sends text messages.
#[derive(Debug, Default)]
pub(super) struct Sms {
    client: HttpClient,
}

/// What is read of Twilio's answers.
#[derive(Default, Deserialize)]
struct Said {
    /// The message's name, when there is one.
    sid: Option<String>,
    /// Why a message that was taken will not be sent.
    error_code: Option<u32>,
    /// Why a message was not taken.
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
            judge(&http::send(request).await?)
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

/// Twilio's sentences repeat the number, its codes are numbers of its own.
fn judge(answer: &Answer) -> Result<(), DeliveryError> {
    let said = answer.body.as_deref().and_then(|body| serde_json::from_slice::<Said>(body).ok());
    if !answer.status.is_success() {
        let code = said.unwrap_or_default().code;
        let detail = code.map(|code| format!(", Twilio's error {code}")).unwrap_or_default();
        return Err(http::refusal(answer.status, &detail));
    }
    match said {
        Some(Said { error_code: Some(code), .. }) => {
            Err(DeliveryError::Refused(format!("Twilio's error {code}")))
        }
        Some(Said { sid: Some(_), .. }) => Ok(()),
        _ => Err(DeliveryError::Broken("the answer is not one of Twilio's".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, body: &str) -> &'static str {
        let status = reqwest::StatusCode::from_u16(status).unwrap();
        let answer = Answer { status, body: Some(body.as_bytes().to_vec()) };
        judge(&answer).map_or_else(|error| error.outcome(), |()| "sent")
    }

    #[test]
    fn only_an_answer_of_twilios_is_a_success() {
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
    fn twilios_words_are_not_repeated_but_its_code_is() {
        let body = br#"{"code":21211,"message":"+15005550001 is not a number"}"#.to_vec();
        let error = judge(&Answer { status: reqwest::StatusCode::BAD_REQUEST, body: Some(body) })
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the provider refused the message: HTTP 400, Twilio's error 21211"
        );
    }
}
