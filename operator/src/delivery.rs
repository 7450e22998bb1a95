//! A realm's own providers. Enters: the Secret that a realm refers to. Leaves: what sidecars need to deliver codes, or what is
//! wrong with the Secret. No value of it is ever part of a sentence.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use twofactor_core::realm::SmtpSettings;
use twofactor_core::settings::{self, PROVIDERS};

use crate::api::{self, ApiError};
use crate::status::Told;

/// What a realm's Secret came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The Secret's name.
    pub secret: String,
    /// The mail server; absent when codes cannot be delivered.
    pub smtp: Option<SmtpSettings>,
    /// The condition `DeliveryReady`.
    pub told: Told,
}

/// Reads the Secret `name` of a realm.
///
/// # Errors
/// When the API server does not tell, and may tell later.
pub async fn read(client: &Client, namespace: &str, name: &str) -> Result<Delivery, ApiError> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    match api::optional(api::within(secrets.get(name)).await) {
        Ok(found) => Ok(judge(name, found.as_ref())),
        Err(error) if error.is_temporary() => Err(error),
        Err(error) => {
            Ok(undelivered(name, "SecretNotReadable", format!("The Secret {name} cannot be read: {error}")))
        }
    }
}

fn undelivered(name: &str, reason: &'static str, message: String) -> Delivery {
    Delivery { secret: name.to_owned(), smtp: None, told: Told::no(reason, message) }
}

/// What a Secret comes to.
fn judge(name: &str, secret: Option<&Secret>) -> Delivery {
    let Some(secret) = secret else {
        return undelivered(name, "SecretNotFound", format!("There is no Secret {name} in this namespace"));
    };
    let data = secret.data.clone().unwrap_or_default();
    let value = |key: &str| data.get(key).filter(|value| !value.0.is_empty());
    if let Some(key) =
        PROVIDERS.iter().find(|key| value(key).is_some_and(|value| std::str::from_utf8(&value.0).is_err()))
    {
        let message = format!("The key {key} of the Secret {name} is not text");
        return undelivered(name, "SecretKeyInvalid", message);
    }
    // Policy is the TwoFactorRealm's: nothing but providers is read here. A file that was made a Secret ends with a new line.
    let lookup = |key: &str| {
        let value = PROVIDERS.contains(&key).then(|| value(key)).flatten()?;
        let text = std::str::from_utf8(&value.0).ok()?;
        Some(if key == "SMTP_CA" { text } else { text.trim_end_matches(['\r', '\n']) }.to_owned())
    };
    match settings::realm(lookup) {
        Ok(record) if record.smtp.is_some() => Delivery {
            secret: name.to_owned(),
            smtp: record.smtp,
            told: Told::yes("Available", format!("Codes are mailed as the Secret {name} says")),
        },
        Ok(_) => undelivered(
            name,
            "SecretKeyMissing",
            format!(
                "The Secret {name} has no key SMTP_SERVER, and so no provider that codes could be delivered with"
            ),
        ),
        Err(error) => {
            let reason =
                if value(error.variable).is_some() { "SecretKeyInvalid" } else { "SecretKeyMissing" };
            undelivered(
                name,
                reason,
                format!("The key {} of the Secret {name} {}", error.variable, error.message),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    const MAIL: [(&str, &str); 2] =
        [("SMTP_SERVER", "mail.example.org"), ("SMTP_FROM_EMAIL", "otp@example.org")];

    fn judged(entries: &[(&str, &str)]) -> Delivery {
        let data =
            entries.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        judge("providers", Some(&Secret { data: Some(data.collect()), ..Secret::default() }))
    }

    #[test]
    fn providers_are_read_and_nothing_else() {
        let delivery = judged(&[MAIL.as_slice(), &[("ISSUER", "a:b"), ("SMTP_PORT", "2525\n")]].concat());
        assert!(delivery.told.good, "{delivery:?}");
        assert_eq!(delivery.smtp.unwrap().port, 2525);
    }

    #[test]
    fn what_is_wrong_is_told_with_the_key_and_without_the_value() {
        for (entries, reason, key) in [
            (&[][..], "SecretKeyMissing", "SMTP_SERVER"),
            (&[("TWILIO_ACCOUNT_SID", "x")], "SecretKeyMissing", "SMTP_SERVER"),
            (&MAIL[..1], "SecretKeyMissing", "SMTP_FROM_EMAIL"),
            (&[MAIL[0], MAIL[1], ("SMTP_PORT", "secret-value")], "SecretKeyInvalid", "SMTP_PORT"),
            (&[MAIL[0], MAIL[1], ("SMTP_USERNAME", "secret-value")], "SecretKeyMissing", "SMTP_PASSWORD"),
        ] {
            let told = judged(entries).told;
            assert!(!told.good);
            assert_eq!(told.reason, reason);
            assert!(told.message.contains(key) && told.message.contains("providers"), "{told:?}");
            assert!(!told.message.contains("secret-value"), "{told:?}");
        }
        assert_eq!(judge("providers", None).told.reason, "SecretNotFound");
    }
}
