//! Writes the status of each realm when it has changed, at most every two seconds, because users
//! can change by the thousand.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
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
use crate::state::credentials::{Isolation, SharedLogin};
use crate::state::realm_keys::{KeyState, Phase};
use crate::state::realm_policies::KnownRealm;
use crate::state::realm_secrets::Delivery;
use crate::state::realm_secrets::TokenKey;
use crate::state::realms::{OWNED_BY_ANOTHER, Readiness};

/// Interval between checks for changes.
const PERIOD: Duration = Duration::from_secs(2);
/// Time for which a written status counts although the watch does not show it yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of namespaces in the status; all are counted.
const LISTED: usize = 100;
/// Maximum number of names in a message.
const NAMED: usize = 10;

/// What the status of a realm is built from.
#[derive(Clone, Debug)]
pub struct Report {
    /// The policy, or why it is invalid.
    pub policy: Result<RealmPolicy, ConditionState>,
    /// The realm's own providers, if it has some; nothing until they have been read.
    pub delivery: Option<Delivery>,
    /// The key of tokens, if the realm configures tokens; nothing until it has been read.
    pub token_key: Option<TokenKey>,
    /// Whether the operator has providers for realms without some.
    pub operator_delivers: bool,
    /// The state of the realm in Redis.
    pub readiness: Option<Readiness>,
    /// Whether Redis refuses the operator's login.
    pub is_login_refused: bool,
    /// How well Redis isolates services.
    pub isolation: Isolation,
    /// What services get if the operator may not create logins.
    pub shared_login: SharedLogin,
    /// The generation of the realm's keys.
    pub keys: Option<KeyState>,
    /// The allowed namespaces, including the realm's own.
    pub namespaces: Vec<String>,
    /// Namespaces where a Secret of another owner blocks the credentials.
    pub foreign_secrets: Vec<String>,
    /// Allowed namespaces in which this operator writes no credentials.
    pub out_of_reach: Vec<String>,
    /// Resources of the realm's namespace that the operator may not list.
    pub forbidden: Vec<String>,
    /// Allowed namespaces in which the operator may not list something.
    pub forbidden_callers: Vec<String>,
    /// Number of users.
    pub users: usize,
    /// Number of ready users.
    pub users_ready: usize,
    /// Number of pods whose sidecar has another version.
    pub outdated: usize,
}

/// Writes the status of all realms until `stop`. The lists must be complete.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut written: HashMap<String, Written> = HashMap::new();
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let realms = context.realms.policies.realms();
        let mut uids = Vec::with_capacity(realms.len());
        let mut ready = 0;
        let mut others = BTreeMap::new();
        for realm in
            realms.iter().filter(|realm| context.runtime.watched.includes(&namespace(realm)))
        {
            let uid = realm.object.uid().unwrap_or_default();
            let written = written.entry(uid.clone()).or_default();
            match update_status(&context, realm, written).await {
                None => ready += 1,
                Some(reason) => *others.entry(reason).or_default() += 1,
            }
            uids.push(uid);
        }
        context.runtime.metrics.show_realms(ready, &others);
        written.retain(|uid, _| uids.contains(uid));
    }
}

fn namespace(realm: &KnownRealm) -> String {
    realm.object.namespace().unwrap_or_default()
}

/// The status that was written last, and when.
#[derive(Default)]
struct Written(Option<(TwoFactorRealmStatus, Instant)>);

/// Returns the reason for which the realm is not ready.
async fn update_status(
    context: &Context,
    realm: &KnownRealm,
    written: &mut Written,
) -> Option<String> {
    let object = &realm.object;
    // The watch may not show the written status yet. If it still does not after a while, another
    // client has changed the status.
    let recent =
        written.0.as_ref().filter(|(_, at)| at.elapsed() < PATIENCE).map(|(status, _)| status);
    let old = recent.or(object.status.as_ref()).cloned();
    let now = whole_seconds(context.runtime.clock.now().millis());
    let new = build(object, old.as_ref(), &report(context, realm), now);
    let not_ready = not_ready(&new);
    if old.as_ref() == Some(&new) {
        return not_ready;
    }
    match write(context, object, &new).await {
        Ok(()) => {
            // Events follow a successful write, because a failed one is repeated.
            for notice in notices(old.as_ref(), &new) {
                context.runtime.events.emit(&object.object_ref(&()), notice);
            }
            written.0 = Some((new, Instant::now()));
        }
        Err(error) => {
            tracing::debug!(namespace = namespace(realm), %error, "failed to write the status of a realm");
        }
    }
    not_ready
}

fn not_ready(status: &TwoFactorRealmStatus) -> Option<String> {
    let ready = status.conditions.iter().find(|it| it.type_ == labels::CONDITION_READY)?;
    (ready.status != "True").then(|| ready.reason.clone())
}

async fn write(
    context: &Context,
    realm: &TwoFactorRealm,
    status: &TwoFactorRealmStatus,
) -> Result<(), request::ApiError> {
    let namespace = realm.namespace().unwrap_or_default();
    let realms = Api::<TwoFactorRealm>::namespaced(context.runtime.client.clone(), &namespace);
    let mut body = json!({ "status": status, "metadata": { "uid": realm.uid() } });
    // A merge patch keeps fields that it does not name, so absent fields are set to null.
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
    let (users, users_ready) = context.users.objects.count(&namespace);
    let outdated = context.services.outdated_pods.lock().unwrap_or_else(PoisonError::into_inner);
    let namespaces: Vec<String> =
        context.realms.policies.namespaces_of(&namespace).into_iter().collect();
    let refused = &context.runtime.refused;
    let among = |fits: &dyn Fn(&String) -> bool| {
        namespaces.iter().filter(|name| **name != namespace && fits(name)).cloned().collect()
    };
    Report {
        out_of_reach: among(&|name| !context.services.within_reach.includes(name)),
        forbidden: refused.resources(&namespace),
        forbidden_callers: among(&|name| !refused.resources(name).is_empty()),
        delivery: secret.and_then(|secret| context.realms.secrets.delivery(&namespace, secret)),
        token_key: tokens.and_then(|tokens| context.realms.secrets.token_key(&namespace, tokens)),
        operator_delivers: !context.realms.defaults.borrow().providers.methods().is_empty(),
        readiness: context.realms.registry.get(&namespace).map(|realm| {
            if realm.is_policy_published() { realm.readiness() } else { Readiness::Pending }
        }),
        is_login_refused: context.runtime.is_login_refused.load(Ordering::Relaxed),
        isolation: *context.services.isolation.borrow(),
        shared_login: context.services.shared_login.clone(),
        keys: context
            .realms
            .registry
            .get(&namespace)
            .map(|realm| context.realms.registry.keys.of(&realm.id)),
        namespaces,
        foreign_secrets: context.services.foreign_secrets.namespaces_of(&namespace),
        users,
        users_ready,
        outdated: outdated.get(&namespace).copied().unwrap_or_default(),
        policy,
    }
}

/// Builds the status from the report and the previous status.
pub fn build(
    realm: &TwoFactorRealm,
    old: Option<&TwoFactorRealmStatus>,
    report: &Report,
    now: Timestamp,
) -> TwoFactorRealmStatus {
    let old_conditions = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
    let generation = realm.metadata.generation;
    let build_condition =
        |kind: &str, state: ConditionState| condition(old_conditions, kind, state, generation, now);
    let count = |number: usize| Some(i64::try_from(number).unwrap_or(i64::MAX));
    let policy = match &report.policy {
        Ok(policy) => policy,
        // A realm with another name or an invalid policy has no effect, so there is nothing else to
        // report.
        Err(state) => {
            return TwoFactorRealmStatus {
                observed_generation: generation,
                conditions: vec![build_condition(labels::CONDITION_READY, state.clone())],
                ..TwoFactorRealmStatus::default()
            };
        }
    };
    let (delivery, credentials) = (delivery(policy, report), credentials(report));
    let tokens = tokens(policy, report);
    let ready = forbidden(report)
        .unwrap_or_else(|| ready(policy, &delivery, tokens.as_ref(), &credentials, report));
    let conditions: Vec<Condition> = [
        (labels::CONDITION_READY, ready),
        (labels::CONDITION_DELIVERY_READY, delivery),
        (labels::CONDITION_CREDENTIALS_READY, credentials),
        (labels::CONDITION_NAMESPACES_MATCHED, matched(realm, policy, &report.namespaces)),
    ]
    .into_iter()
    .chain(channels(policy, report))
    .chain(tokens.map(|state| (labels::CONDITION_TOKENS_READY, state)))
    .chain(keys(report).map(|state| (labels::CONDITION_KEYS_CURRENT, state)))
    .chain(
        isolated(report.isolation, &report.shared_login)
            .map(|state| (labels::CONDITION_ISOLATED, state)),
    )
    .map(|(kind, state)| build_condition(kind, state))
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

fn forbidden(report: &Report) -> Option<ConditionState> {
    let resources = report.forbidden.join(", ");
    (!resources.is_empty()).then(|| {
        ConditionState::unmet(
            "NamespaceForbidden",
            format!(
                "The API server does not let the operator list {resources} in this namespace, so changes have no effect: \
                 give it the rights of operator/rbac.yaml here"
            ),
        )
    })
}

/// Summarizes what services need. A realm may have no providers at all, but configured ones must be
/// available.
fn ready(
    policy: &RealmPolicy,
    delivery: &ConditionState,
    tokens: Option<&ConditionState>,
    credentials: &ConditionState,
    report: &Report,
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
    match report.readiness {
        Some(Readiness::Ready) => {
            ConditionState::met("Ready", "Services can verify the users of this realm")
        }
        Some(Readiness::Pending) | None => {
            ConditionState::unmet("StoreFilling", "Redis is being filled")
        }
        Some(Readiness::OwnedByAnother) => {
            ConditionState::unmet("RedisOwnedByAnother", OWNED_BY_ANOTHER)
        }
        Some(Readiness::Unavailable) if report.is_login_refused => ConditionState::unmet(
            "StoreUnavailable",
            "Redis refuses the operator's login: its password must be that of the operator",
        ),
        Some(Readiness::Unavailable) => ConditionState::unmet(
            "StoreUnavailable",
            "Redis does not answer: the policy of this realm will be published when it does",
        ),
    }
}

fn delivery(policy: &RealmPolicy, report: &Report) -> ConditionState {
    match (&policy.delivery_secret, &report.delivery) {
        (Some(_), Some(delivery)) => delivery.condition.clone(),
        (Some(secret), None) => ConditionState::unmet(
            "SecretNotRead",
            format!("The Secret {secret} has not been read yet"),
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
        || ConditionState::unmet("SecretNotRead", "The key of tokens has not been read yet");
    Some(report.token_key.as_ref().map_or_else(not_read, |key| key.condition.clone()))
}

/// Returns one condition for each provider that the realm's Secret configures.
fn channels(policy: &RealmPolicy, report: &Report) -> Vec<(&'static str, ConditionState)> {
    let delivery = report.delivery.as_ref().filter(|_| policy.delivery_secret.is_some());
    let channels = delivery.map(|delivery| delivery.channels.as_slice()).unwrap_or_default();
    let kind = |method: DeliveryMethod| match method {
        DeliveryMethod::Email => Some(labels::CONDITION_EMAIL_READY),
        DeliveryMethod::Sms => Some(labels::CONDITION_SMS_READY),
        DeliveryMethod::Webhook => Some(labels::CONDITION_WEBHOOK_READY),
        DeliveryMethod::App => None,
    };
    channels.iter().filter_map(|(method, state)| Some((kind(*method)?, state.clone()))).collect()
}

fn credentials(report: &Report) -> ConditionState {
    if report.isolation == Isolation::SharedLogin
        && matches!(report.shared_login, SharedLogin::Refused)
    {
        return ConditionState::unmet(
            "NoLogin",
            "The operator's login may not use ACL in Redis, so services get no credentials: allow it ACL, set \
             --sidecar-redis-url, or accept with --allow-shared-login that every service gets the operator's login",
        );
    }
    if !report.out_of_reach.is_empty() {
        return ConditionState::unmet(
            "NamespaceOutOfReach",
            format!(
                "The operator writes no credentials in {}: add these namespaces to --service-namespace \
                 (operator.serviceNamespaces in the chart), or do not allow them",
                named(&report.out_of_reach)
            ),
        );
    }
    if !report.forbidden_callers.is_empty() {
        return ConditionState::unmet(
            "NamespaceForbidden",
            format!(
                "The API server does not let the operator list pods or Secrets in {}: give it the rights of \
                 operator/rbac.yaml there",
                named(&report.forbidden_callers)
            ),
        );
    }
    let foreign_secrets = report.foreign_secrets.as_slice();
    if foreign_secrets.is_empty() {
        return ConditionState::met(
            "Written",
            "The credentials of services are written where pods ask for them",
        );
    }
    let namespaces = named(foreign_secrets);
    ConditionState::unmet(
        "SecretNotOurs",
        format!(
            "A Secret that the operator does not own has the name of the credentials in {namespaces}: delete or rename it"
        ),
    )
}

fn keys(report: &Report) -> Option<ConditionState> {
    let state = report.keys.as_ref()?;
    Some(match state.phase {
        Phase::Steady => ConditionState::met(
            "Current",
            format!("Generation {} of the realm's keys is in use", state.generation),
        ),
        Phase::Announced if report.outdated > 0 => ConditionState::unmet(
            "SidecarsOutdated",
            "New keys wait for pods whose sidecar has another version than the operator, but for ten overlaps at \
             most: recreate these pods",
        ),
        Phase::Announced => ConditionState::unmet(
            "KeysAnnounced",
            format!(
                "Generation {} of the realm's keys is given to services beside the current one",
                state.newest()
            ),
        ),
        Phase::Resealing => ConditionState::unmet(
            "Resealing",
            format!(
                "Records are sealed again with generation {} of the realm's keys",
                state.generation
            ),
        ),
    })
}

fn isolated(isolation: Isolation, shared_login: &SharedLogin) -> Option<ConditionState> {
    match isolation {
        Isolation::Unknown => None,
        Isolation::Full => Some(ConditionState::met(
            "AclApplied",
            "Redis lets the services of each namespace use the keys of this realm and the operator's scripts only",
        )),
        Isolation::PerRealm => Some(ConditionState::unmet(
            "RedisTooOld",
            "Redis is older than version 7: services of allowed namespaces use the keys of this realm and the operator's \
             scripts only, but could overwrite the records of this realm",
        )),
        Isolation::Frozen => Some(ConditionState::unmet(
            "AclNotPermitted",
            "The operator's login may not use ACL in Redis any more: services keep their logins, but none are \
             added or removed",
        )),
        Isolation::SharedLogin => Some(ConditionState::unmet(
            "AclNotPermitted",
            match shared_login {
                SharedLogin::Refused => {
                    "The operator's login may not use ACL in Redis: services get no login"
                }
                SharedLogin::Operators => {
                    "The operator's login may not use ACL in Redis: services get that login, and Redis does not isolate \
                     them"
                }
                SharedLogin::OfServices(_) => {
                    "The operator's login may not use ACL in Redis: services share one login, which opens every realm"
                }
            },
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
            "The selector matches no namespace that is not already allowed",
        );
    }
    match namespaces.len() {
        0 | 1 => ConditionState::met("OwnNamespaceOnly", "Only this namespace is allowed"),
        count => ConditionState::met(
            "Matched",
            format!("{count} namespaces are allowed, including this one"),
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

/// Returns an Event for each condition that has changed. A condition that starts out true emits
/// none.
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

/// Reasons that emit an Event when they occur.
const KNOWN_REASONS: [&str; 15] = [
    "AclApplied",
    "AclNotPermitted",
    "Available",
    "Invalid",
    "NameNotDefault",
    "NamespaceNotFound",
    "NoLogin",
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
            is_login_refused: false,
            isolation: Isolation::Full,
            shared_login: SharedLogin::Refused,
            keys: Some(KeyState::first("a")),
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            foreign_secrets: Vec::new(),
            out_of_reach: Vec::new(),
            forbidden: Vec::new(),
            forbidden_callers: Vec::new(),
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
    fn a_valid_realm_is_ready_and_reports_its_allowed_namespaces() {
        let realm = realm("default", json!({ "allowedNamespaces": { "names": ["kms"] } }));
        let status = build(&realm, None, &report(&realm, &["kms", "people"]), whole_seconds(1000));
        let reasons = reasons(&status);
        assert_eq!(reasons["Ready"], ("True", "Ready"));
        assert_eq!(reasons["DeliveryReady"], ("False", "NotConfigured"));
        assert_eq!(reasons["Isolated"], ("True", "AclApplied"));
        assert_eq!(reasons["NamespacesMatched"], ("True", "Matched"));
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
    fn allowed_namespaces_that_match_nothing_are_reported_and_the_realm_stays_ready() {
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
    fn a_realm_of_another_name_has_no_effect_and_is_reported() {
        let realm = realm("other", json!({}));
        let status = build(&realm, None, &report(&realm, &["people"]), whole_seconds(0));
        assert_eq!(reasons(&status), HashMap::from([("Ready", ("False", "NameNotDefault"))]));
        assert_eq!((status.users, status.namespaces.len()), (None, 0));
        assert_eq!(notices(None, &status)[0].reason, "NameNotDefault");
    }

    #[test]
    fn a_realm_is_ready_if_everything_that_services_need_is_ready() {
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
            ready(Report { readiness: Some(Readiness::OwnedByAnother), ..good.clone() }),
            "RedisOwnedByAnother"
        );
        assert_eq!(
            ready(Report { foreign_secrets: vec!["kms".to_owned()], ..good.clone() }),
            "SecretNotOurs"
        );
        let shared = Report { isolation: Isolation::SharedLogin, ..good.clone() };
        assert_eq!(ready(shared.clone()), "NoLogin");
        assert_eq!(ready(Report { shared_login: SharedLogin::Operators, ..shared }), "Ready");
        let status = build(&realm, None, &good, whole_seconds(0));
        assert_eq!(reasons(&status)["SmsReady"], ("True", "Available"));
        assert!(
            !reasons(&status).contains_key("EmailReady"),
            "the Secret configures no provider for mail"
        );
    }

    #[test]
    fn a_realm_that_configures_tokens_needs_their_key() {
        let realm = realm("default", json!({ "tokens": { "audiences": ["kms"] } }));
        let token_reasons = |report: Report| {
            let status = build(&realm, None, &report, whole_seconds(0));
            let reasons = reasons(&status);
            (reasons["TokensReady"].1.to_owned(), reasons["Ready"].1.to_owned())
        };
        let unread = report(&realm, &["people"]);
        assert_eq!(
            token_reasons(unread.clone()),
            ("SecretNotRead".to_owned(), "SecretNotRead".to_owned())
        );
        let key = |condition| TokenKey {
            algorithm: TokenAlgorithm::Hs256,
            secret: None,
            key: None,
            condition,
        };
        let good =
            Report { token_key: Some(key(ConditionState::met("Available", ""))), ..unread.clone() };
        assert_eq!(token_reasons(good), ("Available".to_owned(), "Ready".to_owned()));
        let bad = Report {
            token_key: Some(key(ConditionState::unmet("SecretKeyInvalid", ""))),
            ..unread
        };
        assert_eq!(token_reasons(bad).1, "SecretKeyInvalid");
    }

    #[test]
    fn a_message_names_ten_namespaces_and_counts_the_others() {
        let names: Vec<String> = (0..12).map(|number| format!("n{number}")).collect();
        assert!(named(&names).ends_with("n9 and 2 more"));
        assert_eq!(named(&names[..2]), "n0, n1");
    }
}
