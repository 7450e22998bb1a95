//! Reads the providers from the Secret that a realm refers to, or says what is wrong with the
//! Secret. No message contains a value of the Secret.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use twofactor_core::provider::{Providers, SmtpSecurity};
use twofactor_core::settings::providers::{Read, providers};
use twofactor_core::settings::variables::PROVIDERS;
use twofactor_core::user::DeliveryMethod;

use crate::k8s::conditions::ConditionState;
use crate::k8s::request::{self, ApiError};
use crate::state::realm_secrets::Delivery;

/// Reads the Secret `name` of a realm. Returns an error only if it may succeed later.
pub async fn read(client: &Client, namespace: &str, name: &str) -> Result<Delivery, ApiError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    match request::optional(request::within(secrets.get(name)).await) {
        Ok(found) => Ok(delivery_of(name, found.as_ref())),
        Err(error) if error.is_temporary() => Err(error),
        Err(error) => Ok(undelivered(
            name,
            "SecretNotReadable",
            format!("The Secret {name} cannot be read: {error}"),
        )),
    }
}

fn undelivered(name: &str, reason: &'static str, message: String) -> Delivery {
    Delivery {
        secret: name.to_owned(),
        providers: Providers::default(),
        condition: ConditionState::unmet(reason, message),
        channels: Vec::new(),
    }
}

/// Returns the providers in a Secret.
fn delivery_of(name: &str, secret: Option<&Secret>) -> Delivery {
    let Some(secret) = secret else {
        return undelivered(
            name,
            "SecretNotFound",
            format!("There is no Secret {name} in this namespace"),
        );
    };
    let data = secret.data.clone().unwrap_or_default();
    let value = |key: &str| data.get(key).filter(|value| !value.0.is_empty());
    if let Some(key) = PROVIDERS
        .iter()
        .find(|key| value(key).is_some_and(|value| std::str::from_utf8(&value.0).is_err()))
    {
        let message = format!("The key {key} of the Secret {name} is not text");
        return undelivered(name, "SecretKeyInvalid", message);
    }
    // Only providers are read here, because the policy is part of the TwoFactorRealm.
    let lookup = |key: &str| {
        let value = PROVIDERS.contains(&key).then(|| value(key)).flatten()?;
        std::str::from_utf8(&value.0).ok().map(str::to_owned)
    };
    let Read { providers, errors } = providers(lookup);
    let mut channels: Vec<(DeliveryMethod, ConditionState)> = providers
        .methods()
        .into_iter()
        .map(|method| (method, available(method, &providers, name)))
        .collect();
    for (method, error) in errors {
        let reason =
            if value(error.variable).is_some() { "SecretKeyInvalid" } else { "SecretKeyMissing" };
        let message = format!("The key {} of the Secret {name} {}", error.variable, error.message);
        channels.push((method, ConditionState::unmet(reason, message)));
    }
    if channels.is_empty() {
        let message = format!(
            "The Secret {name} configures no provider: it has none of the keys SMTP_SERVER, TWILIO_ACCOUNT_SID and WEBHOOK_URL"
        );
        return undelivered(name, "SecretKeyMissing", message);
    }
    Delivery { secret: name.to_owned(), providers, condition: summarize(&channels, name), channels }
}

fn available(method: DeliveryMethod, providers: &Providers, name: &str) -> ConditionState {
    let in_clear = match method {
        DeliveryMethod::Email => {
            providers.smtp.as_ref().is_some_and(|smtp| smtp.security == SmtpSecurity::Plain)
        }
        DeliveryMethod::Sms => {
            providers.twilio.as_ref().is_some_and(|twilio| twilio.api.is_in_clear())
        }
        DeliveryMethod::Webhook => {
            providers.webhook.as_ref().is_some_and(|webhook| webhook.receiver.is_in_clear())
        }
        DeliveryMethod::App => false,
    };
    let warning = if in_clear { ", without encryption" } else { "" };
    ConditionState::met(
        "Available",
        format!(
            "Codes are delivered by {}, configured in the Secret {name}{warning}",
            method.name()
        ),
    )
}

/// Summarizes the conditions of all configured channels, which must all be met.
fn summarize(channels: &[(DeliveryMethod, ConditionState)], name: &str) -> ConditionState {
    let unmet: Vec<&ConditionState> =
        channels.iter().map(|(_, state)| state).filter(|state| !state.is_met).collect();
    if let Some(first) = unmet.first() {
        let messages: Vec<&str> = unmet.iter().map(|state| state.message.as_str()).collect();
        return ConditionState::unmet(first.reason, messages.join("; "));
    }
    let methods: Vec<&str> = channels.iter().map(|(method, _)| method.name()).collect();
    ConditionState::met(
        "Available",
        format!("Codes are delivered by {}, configured in the Secret {name}", methods.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    const MAIL: [(&str, &str); 2] =
        [("SMTP_SERVER", "mail.example.org"), ("SMTP_FROM_EMAIL", "otp@example.org")];

    fn delivery_from(entries: &[(&str, &str)]) -> Delivery {
        let data = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        delivery_of("providers", Some(&Secret { data: Some(data.collect()), ..Secret::default() }))
    }

    #[test]
    fn providers_are_read_and_nothing_else() {
        let delivery = delivery_from(
            &[MAIL.as_slice(), &[("ISSUER", "a:b"), ("SMTP_PORT", "2525\n")]].concat(),
        );
        assert!(delivery.condition.is_met, "{delivery:?}");
        assert_eq!(delivery.providers.smtp.unwrap().port, 2525);
        assert_eq!(delivery.channels.len(), 1);
    }

    #[test]
    fn one_invalid_provider_does_not_disable_the_others() {
        let delivery =
            delivery_from(&[MAIL.as_slice(), &[("WEBHOOK_URL", "https://example.org")]].concat());
        assert_eq!(
            (delivery.condition.is_met, delivery.condition.reason),
            (false, "SecretKeyMissing")
        );
        assert_eq!(delivery.providers.methods(), [DeliveryMethod::Email]);
        let is_met = |method| {
            delivery
                .channels
                .iter()
                .find(|(found, _)| *found == method)
                .map(|(_, state)| state.is_met)
        };
        assert_eq!(is_met(DeliveryMethod::Email), Some(true));
        assert_eq!(is_met(DeliveryMethod::Webhook), Some(false));
        assert_eq!(is_met(DeliveryMethod::Sms), None);
    }

    #[test]
    fn an_unencrypted_provider_is_reported() {
        let delivery = delivery_from(&[MAIL.as_slice(), &[("SMTP_SECURITY", "plain")]].concat());
        assert!(delivery.channels[0].1.message.ends_with("without encryption"), "{delivery:?}");
    }

    #[test]
    fn an_error_names_the_key_and_never_the_value() {
        for (entries, reason, key) in [
            (&[][..], "SecretKeyMissing", "SMTP_SERVER"),
            (&[("TWILIO_ACCOUNT_SID", "secret-value")], "SecretKeyInvalid", "TWILIO_ACCOUNT_SID"),
            (&[("TWILIO_AUTH_TOKEN", "secret-value")], "SecretKeyMissing", "TWILIO_ACCOUNT_SID"),
            (&[("WEBHOOK_SECRET", "secret-value")], "SecretKeyMissing", "WEBHOOK_URL"),
            (&MAIL[..1], "SecretKeyMissing", "SMTP_FROM_EMAIL"),
            (&[MAIL[0], MAIL[1], ("SMTP_PORT", "secret-value")], "SecretKeyInvalid", "SMTP_PORT"),
            (
                &[("SMTP_SERVER", "mail.example.org:587"), MAIL[1]],
                "SecretKeyInvalid",
                "SMTP_SERVER",
            ),
            (&[("SMTP_SERVER", "secret-value\nx"), MAIL[1]], "SecretKeyInvalid", "SMTP_SERVER"),
            (&[MAIL[0], MAIL[1], ("SMTP_CA", "secret-value")], "SecretKeyInvalid", "SMTP_CA"),
            (
                &[MAIL[0], MAIL[1], ("SMTP_USERNAME", "secret-value")],
                "SecretKeyMissing",
                "SMTP_PASSWORD",
            ),
        ] {
            let state = delivery_from(entries).condition;
            assert!(!state.is_met);
            assert_eq!(state.reason, reason);
            assert!(
                state.message.contains(key) && state.message.contains("providers"),
                "{state:?}"
            );
            assert!(!state.message.contains("secret-value"), "{state:?}");
        }
        assert_eq!(delivery_of("providers", None).condition.reason, "SecretNotFound");
    }
}
