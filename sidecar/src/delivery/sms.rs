//! Sends codes as text messages over Twilio's Messages API. A success means that Twilio accepted
//! the message, not that a phone shows it.

use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::Value;
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

/// The members of Twilio's answers that are used. Providers with the same API write numbers as
/// text, and empty text where there is nothing.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TwilioAnswer {
    /// The id of an accepted message.
    sid: Value,
    /// What has become of an accepted message.
    status: Value,
    /// Why an accepted message will not be sent.
    error_code: Value,
    /// Why a message was not accepted.
    code: Value,
}

/// Statuses of messages that will not arrive.
const FAILED: [&str; 3] = ["failed", "undelivered", "canceled"];

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
                return Err(DeliveryError::Misconfigured(
                    "no number, or no account with Twilio".into(),
                ));
            };
            let client = self.client.of(&settings.api).await?;
            let url = format!(
                "{}/2010-04-01/Accounts/{}/Messages.json",
                settings.api.url.expose_secret(),
                settings.account_sid
            );
            let login = settings.api_key.as_ref().unwrap_or(&settings.account_sid);
            let request = client
                .post(url)
                .basic_auth(login, Some(settings.auth_token.expose_secret()))
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form(settings, number, &order.texts().sms(&order.values)));
            evaluate(&http::send(request).await?)
        })
    }
}

fn form(settings: &TwilioSettings, to: &PhoneNumber, text: &str) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("To", to.as_str());
    match &settings.sender {
        TwilioSender::PhoneNumber(number) => form.append_pair("From", number.as_str()),
        TwilioSender::Named(name) => form.append_pair("From", name),
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
        let detail =
            parsed.and_then(|parsed| error_in(&parsed.code)).map(|error| format!(", {error}"));
        return Err(http::refusal(answer.status, &detail.unwrap_or_default()));
    }
    let broken = || DeliveryError::Broken("the answer is not one of Twilio's".to_owned());
    let parsed = parsed.ok_or_else(broken)?;
    if let Some(error) = error_in(&parsed.error_code) {
        return Err(DeliveryError::Refused(error));
    }
    if let Some(status) = FAILED.into_iter().find(|failed| parsed.status == **failed) {
        return Err(DeliveryError::Refused(format!("the message is {status}")));
    }
    match parsed.sid {
        Value::String(sid) if !sid.is_empty() => Ok(()),
        _ => Err(broken()),
    }
}

/// Returns a code of Twilio for the log, or `None` if there is no error.
fn error_in(code: &Value) -> Option<String> {
    let code = match code {
        Value::Null => return None,
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    if code.is_empty() || code == "0" {
        return None;
    }
    let is_code = code.len() <= 9 && code.bytes().all(|byte| byte.is_ascii_digit());
    Some(if is_code { format!("Twilio's error {code}") } else { "an error of Twilio".to_owned() })
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
        for (status, body, expected) in [
            (201, r#"{"sid":"SM1","status":"queued","error_code":null}"#, "sent"),
            (201, r#"{"sid":"SM1","status":"accepted"}"#, "sent"),
            (200, r#"{"sid":"SM1","error_code":""}"#, "sent"),
            (200, r#"{"sid":"SM1","error_code":0,"code":""}"#, "sent"),
            (201, r#"{"sid":"SM1","status":"failed","error_code":30003}"#, "refused"),
            (201, r#"{"sid":"SM1","status":"failed","error_code":null}"#, "refused"),
            (201, r#"{"sid":"SM1","status":"undelivered"}"#, "refused"),
            (201, r#"{"sid":"SM1","status":"canceled","error_code":""}"#, "refused"),
            (201, r#"{"sid":"SM1","status":"queued","error_code":"30007"}"#, "refused"),
            (201, r#"{"sid":"SM1","error_code":{"code":30007}}"#, "refused"),
            (200, "<html>welcome to the hotel</html>", "broken-off"),
            (200, "[]", "broken-off"),
            (200, "null", "broken-off"),
            (200, r#"{"sid":null,"status":"queued"}"#, "broken-off"),
            (200, r#"{"sid":"","status":"queued"}"#, "broken-off"),
            (200, r#"{"status":"queued"}"#, "broken-off"),
            (400, r#"{"code":21211,"message":"The 'To' number +1 is not valid"}"#, "refused"),
        ] {
            assert_eq!(outcome(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn the_log_has_twilios_code_whatever_the_status_is() {
        for (status, body, said) in [
            (400, r#"{"code":21211}"#, "HTTP 400, Twilio's error 21211"),
            (400, r#"{"code":"21211"}"#, "HTTP 400, Twilio's error 21211"),
            (401, r#"{"code":20003}"#, "HTTP 401, Twilio's error 20003"),
            (403, r#"{"code":20008}"#, "HTTP 403, Twilio's error 20008"),
            (429, r#"{"code":20429}"#, "HTTP 429, Twilio's error 20429"),
            (400, r#"{"code":"+15005550001 is no number"}"#, "HTTP 400, an error of Twilio"),
            (400, r#"{"code":""}"#, "HTTP 400"),
            (401, "Unauthorized", "HTTP 401"),
        ] {
            let status = reqwest::StatusCode::from_u16(status).unwrap();
            let answer = Answer { status, body: Some(body.as_bytes().to_vec()) };
            let error = evaluate(&answer).unwrap_err().to_string();
            assert!(error.ends_with(said), "{error}");
        }
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
