//! Builds the record of a realm from its policy and from the Secrets that the policy refers to.

use std::collections::BTreeSet;

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use twofactor_api::validate::realm::RealmPolicy;
use twofactor_api::validate::tokens::TokenPolicy;
use twofactor_core::realm::RealmRecord;
use twofactor_core::time::UnixMillis;
use twofactor_core::token::{RetiredKey, SigningKey, TokenSettings};
use twofactor_store::StoreError;

use super::{providers, token_key};
use crate::k8s::request::ApiError;
use crate::state::realm_secrets::Delivery;
use crate::state::realms::Realm;
use crate::state::{RealmsState, Runtime, random};

/// Time for which a public key is published after another one replaced it, in milliseconds: the
/// longest lifetime of a token, and a minute in which sidecars read the record and clocks may
/// differ.
const RETIRED_FOR: i64 = 360_000;

/// Returns the record of a realm, or nothing if its Secrets have not been read yet.
pub fn known(realms: &RealmsState, realm: &str) -> Option<RealmRecord> {
    let policy = realms.policies.policy(realm).unwrap_or_default();
    let delivery = match &policy.delivery_secret {
        Some(secret) => Some(realms.secrets.delivery(realm, secret)?),
        None => None,
    };
    let key = match &policy.tokens {
        Some(tokens) => realms.secrets.token_key(realm, tokens)?.key,
        None => None,
    };
    let callers = realms.policies.namespaces_of(realm);
    let defaults = realms.defaults.borrow();
    let record = build(&defaults, &policy, delivery.as_ref(), callers);
    Some(RealmRecord { tokens: tokens(&defaults, &policy, key), ..record })
}

/// Returns the token settings. A realm that configures tokens signs them with its own key, and
/// issues none without that key.
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

/// Returns the record of a realm, and reads its Secrets if necessary.
pub async fn read(
    runtime: &Runtime,
    realms: &RealmsState,
    realm: &str,
) -> Result<RealmRecord, ApiError> {
    loop {
        if let Some(record) = known(realms, realm) {
            return Ok(record);
        }
        read_secrets(runtime, realms, realm).await?;
    }
}

/// Publishes the record of a realm, with the public keys whose tokens can still be valid. Returns
/// whether it has changed.
pub async fn publish(
    realm: &Realm,
    record: &RealmRecord,
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let next = |old: Option<&RealmRecord>| RealmRecord {
        retired_keys: old.map(|old| retired(old, record, now)).unwrap_or_default(),
        ..record.clone()
    };
    realm.publisher.publish_realm_after(next, now, &mut random()).await
}

/// Returns the public keys that tokens were signed with before `new` is published, and that they
/// can be valid with.
fn retired(old: &RealmRecord, new: &RealmRecord, now: UnixMillis) -> Vec<RetiredKey> {
    let key = |record: &RealmRecord| public_key(record.tokens.as_ref());
    let current = key(new);
    let mut retired = old.retired_keys.clone();
    retired.extend(
        key(old)
            .filter(|_| key(old) != current)
            .map(|x| RetiredKey { x, until: now.offset(RETIRED_FOR) }),
    );
    retired.retain(|key| key.until > now && Some(&key.x) != current.as_ref());
    retired
}

/// The public key of tokens that are signed with Ed25519.
fn public_key(tokens: Option<&TokenSettings>) -> Option<String> {
    let SigningKey::EdDsa(key) = &tokens?.key else { return None };
    let pair = Ed25519KeyPair::from_seed_unchecked(key.expose_secret()).ok()?;
    Some(BASE64URL_NOPAD.encode(pair.public_key().as_ref()))
}

/// Returns the issuer of users that set none.
pub fn issuer(realms: &RealmsState, realm: &str) -> String {
    let policy = realms.policies.policy(realm);
    policy
        .and_then(|policy| policy.issuer)
        .unwrap_or_else(|| realms.defaults.borrow().issuer.clone())
}

/// Builds the record. A realm that refers to a Secret has only the providers of that Secret.
fn build(
    defaults: &RealmRecord,
    policy: &RealmPolicy,
    delivery: Option<&Delivery>,
    callers: BTreeSet<String>,
) -> RealmRecord {
    // The message is taken as a whole, because the realm's text and the operator's HTML would be
    // two different messages.
    let message = policy.message.clone().unwrap_or_else(|| defaults.message.clone());
    RealmRecord {
        issuer: policy.issuer.clone().unwrap_or_else(|| defaults.issuer.clone()),
        otp_lifetime: policy.otp_lifetime.unwrap_or(defaults.otp_lifetime),
        providers: match delivery {
            Some(delivery) => delivery.providers.clone(),
            None => defaults.providers.clone(),
        },
        translations: policy
            .translations
            .iter()
            .map(|(language, texts)| (language.clone(), texts.clone().over(&message)))
            .collect(),
        message,
        callers: Some(callers),
        limits: policy.limits.over(defaults.limits),
        audit: policy.audit.over(defaults.audit),
        tokens: defaults.tokens.clone(),
        retired_keys: Vec::new(),
        max_staleness: policy.max_staleness,
        uniform_answers: policy.uniform_answers.unwrap_or(defaults.uniform_answers),
        redis_wait: defaults.redis_wait,
    }
}

/// Reads the Secrets that a realm refers to. Returns whether the result has changed.
pub async fn read_secrets(
    runtime: &Runtime,
    realms: &RealmsState,
    realm: &str,
) -> Result<bool, ApiError> {
    let delivery = read_delivery(runtime, realms, realm).await?;
    Ok(read_token_key(runtime, realms, realm).await? || delivery)
}

async fn read_token_key(
    runtime: &Runtime,
    realms: &RealmsState,
    realm: &str,
) -> Result<bool, ApiError> {
    let policy = realms.policies.policy(realm).and_then(|policy| policy.tokens);
    let key = match &policy {
        Some(policy) => Some(token_key::read(runtime, realms, realm, policy).await?),
        None => None,
    };
    let changed = realms.secrets.remember_token_key(realm, key.clone());
    if let Some(bad) = key.filter(|key| changed && !key.condition.is_met) {
        let reason = bad.condition.reason;
        tracing::warn!(
            namespace = realm,
            reason,
            "no tokens in this realm: {}",
            bad.condition.message
        );
    }
    Ok(changed)
}

/// Reads the Secret with providers that a realm refers to. Returns whether the result has changed.
async fn read_delivery(
    runtime: &Runtime,
    realms: &RealmsState,
    realm: &str,
) -> Result<bool, ApiError> {
    let secret = realms.policies.policy(realm).and_then(|policy| policy.delivery_secret);
    let delivery = match secret {
        Some(secret) => Some(providers::read(&runtime.client, realm, &secret).await?),
        None => None,
    };
    if let Some(bad) = delivery.as_ref().filter(|delivery| !delivery.condition.is_met)
        && realms.secrets.delivery(realm, &bad.secret).as_ref() != Some(bad)
    {
        tracing::warn!(
            namespace = realm,
            reason = bad.condition.reason,
            "codes of this realm cannot be delivered: {}",
            bad.condition.message
        );
    }
    Ok(realms.secrets.remember_delivery(realm, delivery))
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
            from: "a@b".parse().unwrap(),
            ehlo_name: None,
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
