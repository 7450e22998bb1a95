//! Builds the record of a realm from its policy and the Secrets that it refers to.

use std::collections::BTreeSet;

use twofactor_api::validate::realm::RealmPolicy;
use twofactor_api::validate::tokens::TokenPolicy;
use twofactor_core::realm::RealmRecord;
use twofactor_core::token::{SigningKey, TokenSettings};

use super::{providers, token_key};
use crate::k8s::request::ApiError;
use crate::state::Context;
use crate::state::realm_secrets::Delivery;

/// The record of a realm; nothing while its providers are not known yet.
pub fn known(context: &Context, realm: &str) -> Option<RealmRecord> {
    let policy = context.policies.policy(realm).unwrap_or_default();
    let delivery = match &policy.delivery_secret {
        Some(secret) => Some(context.records.delivery(realm, secret)?),
        None => None,
    };
    let key = match &policy.tokens {
        Some(tokens) => context.records.token_key(realm, tokens)?.key,
        None => None,
    };
    let callers = context.policies.namespaces_of(realm);
    let record = build(&context.defaults, &policy, delivery.as_ref(), callers);
    Some(RealmRecord { tokens: tokens(&context.defaults, &policy, key), ..record })
}

/// A realm that says something about tokens signs them with its own key, or gives none while there
/// is no key.
fn tokens(
    defaults: &RealmRecord,
    policy: &RealmPolicy,
    key: Option<SigningKey>,
) -> Option<TokenSettings> {
    let Some(TokenPolicy { audiences, lifetime, .. }) = &policy.tokens else {
        return defaults.tokens.clone();
    };
    Some(TokenSettings { key: key?, audiences: audiences.clone(), lifetime: *lifetime })
}

/// The record of a realm, for which its providers are read when they are not known yet.
pub async fn read(context: &Context, realm: &str) -> Result<RealmRecord, ApiError> {
    loop {
        if let Some(record) = known(context, realm) {
            return Ok(record);
        }
        read_secrets(context, realm).await?;
    }
}

/// The issuer of a realm's users who have none of their own.
pub fn issuer(context: &Context, realm: &str) -> String {
    let policy = context.policies.policy(realm);
    policy.and_then(|policy| policy.issuer).unwrap_or_else(|| context.defaults.issuer.clone())
}

/// A realm that refers to a Secret has the providers of that Secret, and no others.
fn build(
    defaults: &RealmRecord,
    policy: &RealmPolicy,
    delivery: Option<&Delivery>,
    callers: BTreeSet<String>,
) -> RealmRecord {
    RealmRecord {
        issuer: policy.issuer.clone().unwrap_or_else(|| defaults.issuer.clone()),
        otp_lifetime: policy.otp_lifetime.unwrap_or(defaults.otp_lifetime),
        providers: match delivery {
            Some(delivery) => delivery.providers.clone(),
            None => defaults.providers.clone(),
        },
        // As a whole: a text of the realm's beside HTML of the operator's would be two messages in
        // one.
        message: policy.message.clone().unwrap_or_else(|| defaults.message.clone()),
        callers: Some(callers),
        limits: policy.limits.over(defaults.limits),
        audit: policy.audit.over(defaults.audit),
        tokens: defaults.tokens.clone(),
        uniform_answers: policy.uniform_answers.unwrap_or(defaults.uniform_answers),
        redis_wait: defaults.redis_wait,
    }
}

/// Reads the Secrets that a realm refers to. Tells whether something else came of them than before.
pub async fn read_secrets(context: &Context, realm: &str) -> Result<bool, ApiError> {
    let delivery = read_delivery(context, realm).await?;
    Ok(read_token_key(context, realm).await? || delivery)
}

async fn read_token_key(context: &Context, realm: &str) -> Result<bool, ApiError> {
    let policy = context.policies.policy(realm).and_then(|policy| policy.tokens);
    let key = match &policy {
        Some(policy) => Some(token_key::read(context, realm, policy).await?),
        None => None,
    };
    let changed = context.records.remember_token_key(realm, key.clone());
    if let Some(bad) = key.filter(|key| changed && !key.condition.is_met) {
        let reason = bad.condition.reason;
        tracing::warn!(
            namespace = realm,
            reason,
            "this realm gives no tokens: {}",
            bad.condition.message
        );
    }
    Ok(changed)
}

/// Reads the Secret with providers that a realm refers to. Tells whether it is something else than
/// before.
async fn read_delivery(context: &Context, realm: &str) -> Result<bool, ApiError> {
    let secret = context.policies.policy(realm).and_then(|policy| policy.delivery_secret);
    let delivery = match secret {
        Some(secret) => Some(providers::read(&context.client, realm, &secret).await?),
        None => None,
    };
    if let Some(bad) = delivery.as_ref().filter(|delivery| !delivery.condition.is_met)
        && context.records.delivery(realm, &bad.secret).as_ref() != Some(bad)
    {
        tracing::warn!(
            namespace = realm,
            reason = bad.condition.reason,
            "codes of this realm cannot be delivered: {}",
            bad.condition.message
        );
    }
    Ok(context.records.remember_delivery(realm, delivery))
}

#[cfg(test)]
mod tests {
    use twofactor_core::message::{MessageTemplates, Part};
    use twofactor_core::provider::{Providers, SmtpSecurity, SmtpSettings};
    use twofactor_core::realm::OtpLifetime;

    use super::*;
    use crate::k8s::conditions::ConditionState;

    fn mail(server: &str) -> Providers {
        let smtp = SmtpSettings {
            server: server.to_owned(),
            port: 25,
            security: SmtpSecurity::Starttls,
            username: None,
            password: None,
            from: "a@b".to_owned(),
            ca_certificates: None,
        };
        Providers { smtp: Some(smtp), ..Providers::default() }
    }

    fn message(part: Part) -> MessageTemplates {
        let mut message = MessageTemplates::default();
        message.set(part, Some(part.parse("{{code}}").unwrap()));
        message
    }

    #[test]
    fn what_a_realm_says_comes_before_the_operators_settings() {
        let defaults = RealmRecord {
            providers: mail("operators"),
            message: message(Part::Html),
            ..RealmRecord::default()
        };
        let callers: BTreeSet<String> = ["people".to_owned()].into();
        let plain = build(&defaults, &RealmPolicy::default(), None, callers.clone());
        assert_eq!(plain, RealmRecord { callers: Some(callers.clone()), ..defaults.clone() });
        let policy = RealmPolicy {
            issuer: Some("A".to_owned()),
            otp_lifetime: OtpLifetime::try_from(2).ok(),
            message: Some(message(Part::Text)),
            ..RealmPolicy::default()
        };
        let delivery = Delivery {
            secret: "providers".to_owned(),
            providers: mail("realms"),
            condition: ConditionState::met("Available", ""),
            channels: Vec::new(),
        };
        let record = build(&defaults, &policy, Some(&delivery), callers.clone());
        assert_eq!((record.issuer.as_str(), u8::from(record.otp_lifetime)), ("A", 2));
        assert_eq!((record.providers, record.message), (mail("realms"), message(Part::Text)));
        let none = Providers::default();
        let broken = Delivery {
            providers: none.clone(),
            condition: ConditionState::unmet("SecretNotFound", ""),
            ..delivery
        };
        assert_eq!(
            build(&defaults, &policy, Some(&broken), callers).providers,
            none,
            "never the operator's"
        );
    }
}
