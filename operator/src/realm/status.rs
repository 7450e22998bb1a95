//! What the status of a realm says. Enters: the realms, and what every other part has found out
//! about them. Leaves: conditions and counts, written when something is different, and not more
//! often than every few seconds: users come in thousands.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use twofactor_api::realm::TwoFactorRealmStatus;
use twofactor_api::validate::realm::{RealmPolicy, is_default};
use twofactor_api::{TwoFactorRealm, labels};
use twofactor_core::user::DeliveryMethod;

use crate::k8s::conditions::{ConditionState, condition, whole_seconds};
use crate::k8s::events::Notice;
use crate::k8s::request;
use crate::state::Context;
use crate::state::credentials::Isolation;
use crate::state::realm_policies::KnownRealm;
use crate::state::realm_secrets::Delivery;
use crate::state::realm_secrets::TokenKey;
use crate::state::realms::Readiness;

/// How often to look whether there is something new to say.
const PERIOD: Duration = Duration::from_secs(2);
/// How long the watch may take to show what was written.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names of namespaces that are listed; all are counted.
const LISTED: usize = 100;
/// Names in a sentence.
const NAMED: usize = 10;

/// What is known about a realm.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it says, or why it says nothing.
    pub policy: Result<RealmPolicy, ConditionState>,
    /// Its providers: its own, if it has some; nothing while they are being read.
    pub delivery: Option<Delivery>,
    /// The key of its tokens, where it says something of tokens; nothing while it is being read.
    pub token_key: Option<TokenKey>,
    /// Whether the operator has providers for realms that have none.
    pub operator_delivers: bool,
    /// What sidecars can read.
    pub readiness: Option<Readiness>,
    /// How well Redis keeps services apart.
    pub isolation: Isolation,
    /// The namespaces that are let in, its own included.
    pub namespaces: Vec<String>,
    /// Those where somebody else's Secret is in the way.
    pub foreign_secrets: Vec<String>,
    /// How many users there are.
    pub users: usize,
    /// How many of them are ready.
    pub users_ready: usize,
    /// Pods with a sidecar of another version.
    pub outdated: usize,
}

/// Tells about all realms until it is told to stop. Begins when the lists are complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut written: HashMap<String, Written> = HashMap::new();
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let realms = context.policies.realms();
        let mut uids = Vec::with_capacity(realms.len());
        for realm in realms.iter().filter(|realm| context.watched.includes(&namespace(realm))) {
            let uid = realm.object.uid().unwrap_or_default();
            update_status(&context, realm, written.entry(uid.clone()).or_default()).await;
            uids.push(uid);
        }
        written.retain(|uid, _| uids.contains(uid));
    }
}

fn namespace(realm: &KnownRealm) -> String {
    realm.object.namespace().unwrap_or_default()
}

/// What was written last, and when.
#[derive(Default)]
struct Written(Option<(TwoFactorRealmStatus, Instant)>);

async fn update_status(context: &Context, realm: &KnownRealm, written: &mut Written) {
    let object = &realm.object;
    // The watch may not show yet what was written last; but if it does not for long, somebody else
    // has written something.
    let recent =
        written.0.as_ref().filter(|(_, at)| at.elapsed() < PATIENCE).map(|(status, _)| status);
    let old = recent.or(object.status.as_ref()).cloned();
    let now = whole_seconds(context.clock.now().millis());
    let new = build(object, old.as_ref(), &report(context, realm), now);
    if old.as_ref() == Some(&new) {
        return;
    }
    match write(context, object, &new).await {
        Ok(()) => {
            // Not before: what cannot be written is tried again and again.
            for notice in notices(old.as_ref(), &new) {
                context.events.emit(&object.object_ref(&()), notice);
            }
            written.0 = Some((new, Instant::now()));
        }
        Err(error) => {
            tracing::debug!(namespace = namespace(realm), %error, "the status of a realm could not be written");
        }
    }
}

async fn write(
    context: &Context,
    realm: &TwoFactorRealm,
    status: &TwoFactorRealmStatus,
) -> Result<(), request::ApiError> {
    let namespace = realm.namespace().unwrap_or_default();
    let realms = Api::<TwoFactorRealm>::namespaced(context.client.clone(), &namespace);
    let mut body = json!({ "status": status, "metadata": { "uid": realm.uid() } });
    // A merge patch leaves alone what it does not name.
    for field in ["namespaces", "namespacesServed", "users", "usersReady", "outdatedSidecars"] {
        if body["status"].get(field).is_none() {
            body["status"][field] = serde_json::Value::Null;
        }
    }
    let (name, parameters, patch) = (realm.name_any(), PatchParams::default(), Patch::Merge(&body));
    request::optional(request::within(realms.patch_status(&name, &parameters, &patch)).await)?;
    Ok(())
}

fn report(context: &Context, realm: &KnownRealm) -> Report {
    let namespace = namespace(realm);
    let policy = realm.policy.clone().map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let reason = if is_default(&realm.object) { "Invalid" } else { "NameNotDefault" };
        ConditionState::unmet(reason, errors.join("; "))
    });
    let secret = policy.as_ref().ok().and_then(|policy| policy.delivery_secret.as_deref());
    let tokens = policy.as_ref().ok().and_then(|policy| policy.tokens.as_ref());
    let (users, users_ready) = context.count(&namespace);
    let outdated = context.outdated.lock().unwrap_or_else(PoisonError::into_inner);
    Report {
        delivery: secret.and_then(|secret| context.records.delivery(&namespace, secret)),
        token_key: tokens.and_then(|tokens| context.records.token_key(&namespace, tokens)),
        operator_delivers: !context.defaults.providers.methods().is_empty(),
        readiness: context.realms.get(&namespace).map(|realm| {
            if realm.is_policy_published() { realm.readiness() } else { Readiness::Pending }
        }),
        isolation: *context.isolation.borrow(),
        namespaces: context.policies.namespaces_of(&namespace).into_iter().collect(),
        foreign_secrets: context.foreign_secrets.namespaces_of(&namespace),
        users,
        users_ready,
        outdated: outdated.get(&namespace).copied().unwrap_or_default(),
        policy,
    }
}

/// The status that `report` makes of the one that was there.
pub fn build(
    realm: &TwoFactorRealm,
    old: Option<&TwoFactorRealmStatus>,
    report: &Report,
    now: Timestamp,
) -> TwoFactorRealmStatus {
    let old_conditions = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
    let generation = realm.metadata.generation;
    let say =
        |kind: &str, state: ConditionState| condition(old_conditions, kind, state, generation, now);
    let count = |number: usize| Some(i64::try_from(number).unwrap_or(i64::MAX));
    let policy = match &report.policy {
        Ok(policy) => policy,
        // Another name, or nothing that could hold: it has no effect, and there is nothing else to
        // say.
        Err(told) => {
            return TwoFactorRealmStatus {
                observed_generation: generation,
                conditions: vec![say(labels::CONDITION_READY, told.clone())],
                ..TwoFactorRealmStatus::default()
            };
        }
    };
    let (delivery, credentials) = (delivery(policy, report), credentials(&report.foreign_secrets));
    let tokens = tokens(policy, report);
    let conditions: Vec<Condition> = [
        (
            labels::CONDITION_READY,
            ready(policy, &delivery, tokens.as_ref(), &credentials, report.readiness),
        ),
        (labels::CONDITION_DELIVERY_READY, delivery),
        (labels::CONDITION_CREDENTIALS_READY, credentials),
        (labels::CONDITION_NAMESPACES_MATCHED, matched(realm, policy, &report.namespaces)),
    ]
    .into_iter()
    .chain(channels(policy, report))
    .chain(tokens.map(|told| (labels::CONDITION_TOKENS_READY, told)))
    .chain(isolated(report.isolation).map(|told| (labels::CONDITION_ISOLATED, told)))
    .map(|(kind, told)| say(kind, told))
    .collect();
    TwoFactorRealmStatus {
        observed_generation: generation,
        conditions,
        namespaces: report.namespaces.iter().take(LISTED).cloned().collect(),
        namespaces_served: count(report.namespaces.len()),
        users: count(report.users),
        users_ready: count(report.users_ready),
        outdated_sidecars: count(report.outdated),
    }
}

/// The sum of what services need. That there are no providers at all is somebody's choice; those
/// that were asked for must be there.
fn ready(
    policy: &RealmPolicy,
    delivery: &ConditionState,
    tokens: Option<&ConditionState>,
    credentials: &ConditionState,
    readiness: Option<Readiness>,
) -> ConditionState {
    if policy.delivery_secret.is_some() && !delivery.is_met {
        return delivery.clone();
    }
    if let Some(tokens) = tokens.filter(|tokens| !tokens.is_met) {
        return tokens.clone();
    }
    if !credentials.is_met {
        return credentials.clone();
    }
    match readiness {
        Some(Readiness::Ready) => {
            ConditionState::met("Ready", "Services can verify the users as this realm says")
        }
        Some(Readiness::Pending) | None => {
            ConditionState::unmet("StoreFilling", "Redis is being filled")
        }
        Some(Readiness::Unavailable) => ConditionState::unmet(
            "StoreUnavailable",
            "Redis does not answer: what this realm says will be published when it does",
        ),
    }
}

fn delivery(policy: &RealmPolicy, report: &Report) -> ConditionState {
    match (&policy.delivery_secret, &report.delivery) {
        (Some(_), Some(delivery)) => delivery.condition.clone(),
        (Some(secret), None) => ConditionState::unmet(
            "SecretNotRead",
            format!("The Secret {secret} could not be read yet"),
        ),
        (None, _) if report.operator_delivers => ConditionState::met(
            "OperatorDefaults",
            "Codes are delivered by the operator's own providers",
        ),
        (None, _) => ConditionState::unmet(
            "NotConfigured",
            "Neither this realm nor the operator has a provider: only users of authenticator apps can be verified",
        ),
    }
}

fn tokens(policy: &RealmPolicy, report: &Report) -> Option<ConditionState> {
    policy.tokens.as_ref()?;
    let not_read =
        || ConditionState::unmet("SecretNotRead", "The key of tokens could not be read yet");
    Some(report.token_key.as_ref().map_or_else(not_read, |key| key.condition.clone()))
}

/// One condition for each provider that the realm's Secret says something about.
fn channels(policy: &RealmPolicy, report: &Report) -> Vec<(&'static str, ConditionState)> {
    let delivery = report.delivery.as_ref().filter(|_| policy.delivery_secret.is_some());
    let channels = delivery.map(|delivery| delivery.channels.as_slice()).unwrap_or_default();
    let kind = |method: DeliveryMethod| match method {
        DeliveryMethod::Email => Some(labels::CONDITION_EMAIL_READY),
        DeliveryMethod::Sms => Some(labels::CONDITION_SMS_READY),
        DeliveryMethod::Webhook => Some(labels::CONDITION_WEBHOOK_READY),
        DeliveryMethod::App => None,
    };
    channels.iter().filter_map(|(method, told)| Some((kind(*method)?, told.clone()))).collect()
}

fn credentials(foreign_secrets: &[String]) -> ConditionState {
    if foreign_secrets.is_empty() {
        return ConditionState::met(
            "Written",
            "The credentials for services are where they should be",
        );
    }
    let namespaces = named(foreign_secrets);
    ConditionState::unmet(
        "SecretNotOurs",
        format!(
            "A Secret that is not the operator's has the name of the credentials in {namespaces}: delete or rename it"
        ),
    )
}

fn isolated(isolation: Isolation) -> Option<ConditionState> {
    match isolation {
        Isolation::Unknown => None,
        Isolation::Full => Some(ConditionState::met(
            "AclApplied",
            "Redis lets the services of each namespace use the keys of this realm only",
        )),
        Isolation::PerRealm => Some(ConditionState::unmet(
            "RedisTooOld",
            "Redis is older than version 7: services that are let in could overwrite the records of this realm",
        )),
        Isolation::Frozen => Some(ConditionState::unmet(
            "AclNotPermitted",
            "The operator's login may not use ACL in Redis any more: services keep their logins, but Redis lets no new ones in and \
             shuts nobody out",
        )),
        Isolation::SharedLogin => Some(ConditionState::unmet(
            "AclNotPermitted",
            "The operator's login may not use ACL in Redis: services get that login, and Redis does not keep them apart",
        )),
    }
}

fn matched(realm: &TwoFactorRealm, policy: &RealmPolicy, namespaces: &[String]) -> ConditionState {
    let missing: Vec<String> =
        policy.names.iter().filter(|name| !namespaces.contains(name)).cloned().collect();
    if !missing.is_empty() {
        return ConditionState::unmet(
            "NamespaceNotFound",
            format!("There is no namespace {}", named(&missing)),
        );
    }
    let own = realm.namespace().unwrap_or_default();
    let chosen =
        namespaces.iter().filter(|name| **name != own && !policy.names.contains(*name)).count();
    if policy.selector.is_some() && chosen == 0 {
        return ConditionState::unmet(
            "SelectorMatchesNothing",
            "The selector chooses no namespace that is not let in anyway",
        );
    }
    match namespaces.len() {
        0 | 1 => ConditionState::met("OwnNamespaceOnly", "Only this namespace is let in"),
        count => ConditionState::met(
            "Matched",
            format!("{count} namespaces are let in, this one included"),
        ),
    }
}

fn named(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// What is worth an event: a condition that says something else than before. What is well from the
/// beginning is not.
fn notices(old: Option<&TwoFactorRealmStatus>, new: &TwoFactorRealmStatus) -> Vec<Notice> {
    let before = |kind: &str| old?.conditions.iter().find(|condition| condition.type_ == kind);
    let mut notices: Vec<Notice> = Vec::new();
    for condition in &new.conditions {
        let Some(reason) = KNOWN_REASONS.iter().find(|known| **known == condition.reason) else {
            continue;
        };
        let same = before(&condition.type_).is_some_and(|old| old.reason == condition.reason);
        if !same && !notices.iter().any(|notice| notice.reason == *reason) {
            notices.push(if condition.status == "True" {
                Notice::normal(reason, condition.message.clone())
            } else {
                Notice::warning(reason, condition.message.clone())
            });
        }
    }
    notices
}

/// The reasons that are told as events when they come up.
const KNOWN_REASONS: [&str; 14] = [
    "AclApplied",
    "AclNotPermitted",
    "Available",
    "Invalid",
    "NameNotDefault",
    "NamespaceNotFound",
    "Ready",
    "RedisTooOld",
    "SecretKeyInvalid",
    "SecretKeyMissing",
    "SecretNotFound",
    "SecretNotOurs",
    "SelectorMatchesNothing",
    "StoreUnavailable",
];

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use twofactor_api::validate::realm::validate;
    use twofactor_core::provider::Providers;
    use twofactor_core::token::TokenAlgorithm;

    use super::*;

    fn realm(name: &str, spec: Value) -> TwoFactorRealm {
        let mut realm = TwoFactorRealm::new(name, serde_json::from_value(spec).unwrap());
        realm.metadata.namespace = Some("people".to_owned());
        realm.metadata.generation = Some(2);
        realm
    }

    fn report(realm: &TwoFactorRealm, namespaces: &[&str]) -> Report {
        Report {
            policy: validate(realm).map_err(|_| {
                ConditionState::unmet("NameNotDefault", "metadata.name: must be default")
            }),
            delivery: None,
            token_key: None,
            operator_delivers: false,
            readiness: Some(Readiness::Ready),
            isolation: Isolation::Full,
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            foreign_secrets: Vec::new(),
            users: 3,
            users_ready: 2,
            outdated: 1,
        }
    }

    fn reasons(status: &TwoFactorRealmStatus) -> HashMap<&str, (&str, &str)> {
        status
            .conditions
            .iter()
            .map(|it| (it.type_.as_str(), (it.status.as_str(), it.reason.as_str())))
            .collect()
    }

    #[test]
    fn a_good_realm_is_ready_and_says_whom_it_lets_in() {
        let realm = realm("default", json!({ "allowedNamespaces": { "names": ["kms"] } }));
        let status = build(&realm, None, &report(&realm, &["kms", "people"]), whole_seconds(1000));
        let told = reasons(&status);
        assert_eq!(told["Ready"], ("True", "Ready"));
        assert_eq!(told["DeliveryReady"], ("False", "NotConfigured"));
        assert_eq!(told["Isolated"], ("True", "AclApplied"));
        assert_eq!(told["NamespacesMatched"], ("True", "Matched"));
        assert_eq!(
            (status.namespaces_served, status.users, status.users_ready),
            (Some(2), Some(3), Some(2))
        );
        assert_eq!(status.outdated_sidecars, Some(1));
        let again =
            build(&realm, Some(&status), &report(&realm, &["kms", "people"]), whole_seconds(9000));
        assert_eq!(again, status);
        assert_eq!(notices(Some(&status), &again), []);
    }

    #[test]
    fn what_finds_nothing_is_told_and_is_no_error() {
        let named = realm("default", json!({ "allowedNamespaces": { "names": ["kmz"] } }));
        let status = build(&named, None, &report(&named, &["people"]), whole_seconds(0));
        assert_eq!(reasons(&status)["NamespacesMatched"], ("False", "NamespaceNotFound"));
        let selected = realm(
            "default",
            json!({ "allowedNamespaces": { "selector": { "matchLabels": { "a": "b" } } } }),
        );
        let status = build(&selected, None, &report(&selected, &["people"]), whole_seconds(0));
        assert_eq!(reasons(&status)["NamespacesMatched"], ("False", "SelectorMatchesNothing"));
        assert_eq!(reasons(&status)["Ready"], ("True", "Ready"));
    }

    #[test]
    fn another_name_has_no_effect_and_is_told() {
        let realm = realm("other", json!({}));
        let status = build(&realm, None, &report(&realm, &["people"]), whole_seconds(0));
        assert_eq!(reasons(&status), HashMap::from([("Ready", ("False", "NameNotDefault"))]));
        assert_eq!((status.users, status.namespaces.len()), (None, 0));
        assert_eq!(notices(None, &status)[0].reason, "NameNotDefault");
    }

    #[test]
    fn what_services_need_makes_the_realm_ready() {
        let realm =
            realm("default", json!({ "delivery": { "secretRef": { "name": "providers" } } }));
        let ready = |report: Report| {
            let status = build(&realm, None, &report, whole_seconds(0));
            reasons(&status)["Ready"].1.to_owned()
        };
        let good = Report {
            delivery: Some(Delivery {
                secret: "providers".to_owned(),
                providers: Providers::default(),
                condition: ConditionState::met("Available", "fine"),
                channels: vec![(DeliveryMethod::Sms, ConditionState::met("Available", "fine"))],
            }),
            ..report(&realm, &["people"])
        };
        assert_eq!(ready(good.clone()), "Ready");
        assert_eq!(ready(Report { delivery: None, ..good.clone() }), "SecretNotRead");
        assert_eq!(
            ready(Report { readiness: Some(Readiness::Unavailable), ..good.clone() }),
            "StoreUnavailable"
        );
        assert_eq!(
            ready(Report { foreign_secrets: vec!["kms".to_owned()], ..good.clone() }),
            "SecretNotOurs"
        );
        assert_eq!(ready(Report { isolation: Isolation::SharedLogin, ..good.clone() }), "Ready");
        let status = build(&realm, None, &good, whole_seconds(0));
        assert_eq!(reasons(&status)["SmsReady"], ("True", "Available"));
        assert!(!reasons(&status).contains_key("EmailReady"), "nobody said anything about mail");
    }

    #[test]
    fn tokens_that_were_asked_for_need_a_key() {
        let realm = realm("default", json!({ "tokens": { "audiences": ["kms"] } }));
        let told = |report: Report| {
            let status = build(&realm, None, &report, whole_seconds(0));
            let told = reasons(&status);
            (told["TokensReady"].1.to_owned(), told["Ready"].1.to_owned())
        };
        let unread = report(&realm, &["people"]);
        assert_eq!(told(unread.clone()), ("SecretNotRead".to_owned(), "SecretNotRead".to_owned()));
        let key = |told| TokenKey {
            algorithm: TokenAlgorithm::Hs256,
            secret: None,
            key: None,
            condition: told,
        };
        let good =
            Report { token_key: Some(key(ConditionState::met("Available", ""))), ..unread.clone() };
        assert_eq!(told(good), ("Available".to_owned(), "Ready".to_owned()));
        let bad = Report {
            token_key: Some(key(ConditionState::unmet("SecretKeyInvalid", ""))),
            ..unread
        };
        assert_eq!(told(bad).1, "SecretKeyInvalid");
    }

    #[test]
    fn many_names_are_cut_short() {
        let names: Vec<String> = (0..12).map(|number| format!("n{number}")).collect();
        assert!(named(&names).ends_with("n9 and 2 more"));
        assert_eq!(named(&names[..2]), "n0, n1");
    }
}
