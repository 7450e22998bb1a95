//! Defines [`TwoFactorRealm`]: what an administrator writes about all users of a namespace, and the
//! status that the operator writes.
//!
//! Fields are read as they were written; [`validate::realm`](crate::validate::realm) checks them.

// `KubeSchema` copies each type into a function, where its `pub` has no effect.
#![allow(unreachable_pub)]
// `kubectl explain` prints plain text.
#![allow(clippy::doc_markdown)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::rules::{self as shared, realm as rules};
use crate::tokens::Tokens;
use crate::user::conditions_schema;

// `kubectl explain` prints the doc comments of the fields, so they are plain text for an
// administrator.

/// What an administrator writes about the users of a namespace.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "twofactor.fountainai.io",
    version = "v1alpha1",
    kind = "TwoFactorRealm",
    plural = "twofactorrealms",
    singular = "twofactorrealm",
    shortname = "tfr",
    category = "fountainai",
    namespaced,
    status = "TwoFactorRealmStatus",
    derive = "PartialEq",
    doc = "Settings of all users of a namespace: which other namespaces may verify them, and how codes are delivered. \
           There is at most one in a namespace, named default. Without one, only the namespace itself is allowed, and \
           the operator's own settings apply.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether services can verify the users as this realm says"
    ),
    printcolumn(
        name = "Namespaces",
        type_ = "integer",
        json_path = ".status.namespacesServed",
        description = "Number of allowed namespaces, this one included"
    ),
    printcolumn(
        name = "Users",
        type_ = "integer",
        json_path = ".status.users",
        description = "Number of users"
    ),
    printcolumn(
        name = "Outdated",
        type_ = "integer",
        json_path = ".status.outdatedSidecars",
        description = "Number of pods whose sidecar has another version than the operator"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why the realm is ready, or is not",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Details of the reason",
        priority = 1
    ),
    validation = rules::name_rule()
)]
#[serde(rename_all = "camelCase")]
pub struct TwoFactorRealmSpec {
    /// The name of the issuer that mails and authenticator apps show: 1 to 100 characters, no
    /// colon, no control characters. A user's own issuer takes precedence. It defaults to the
    /// operator's issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 1, max = shared::ISSUER_CHARACTERS),
        regex(pattern = shared::ISSUER_PATTERN)
    )]
    #[x_kube(validation = shared::pattern_rule(shared::ISSUER_PATTERN, shared::ISSUER_MESSAGE))]
    pub issuer: Option<String>,

    /// Number of minutes for which a delivered code is accepted: 1 to 10. It defaults to the
    /// operator's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::EXPIRATION_MINUTES.start(), max = *rules::EXPIRATION_MINUTES.end()))]
    pub otp_expiration_minutes: Option<i32>,

    /// Number of seconds, 30 to 86400, for which sidecars go on while no operator works. After that
    /// they answer 503, because they would not learn that a user was disabled or a namespace is no
    /// longer allowed. Without it, they go on for any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::STALENESS_SECONDS.start(), max = *rules::STALENESS_SECONDS.end()))]
    pub max_staleness_seconds: Option<i32>,

    /// The namespaces whose services may verify the users of this one. The namespace itself is
    /// always allowed. Everyone who may read Secrets, create pods or run commands in pods there can
    /// verify these users too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AllowedNamespaces")]
    pub allowed_namespaces: Option<AllowedNamespaces>,

    /// How codes are delivered. Without it, the operator's own providers are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Delivery")]
    pub delivery: Option<Delivery>,

    /// Signed tokens after a successful verification, for requests that name an audience. Without
    /// it, the operator's own settings decide whether there are tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Tokens")]
    pub tokens: Option<Tokens>,

    /// Whether answers hide who is a user and why a code was not accepted, so that services can
    /// pass them on to the public. It defaults to the operator's setting, which is false unless an
    /// administrator has changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub uniform_answers: Option<bool>,

    /// Limits on how often codes are issued and sent. Absent limits default to the operator's
    /// settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LimitsSpec")]
    pub limits: Option<LimitsSpec>,

    /// What is recorded of each request in the users' histories. Absent fields default to the
    /// operator's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AuditSpec")]
    pub audit: Option<AuditSpec>,

    /// The texts of messages. If the realm sets one of them, none of the operator's texts are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "MessageSpec")]
    pub message: Option<MessageSpec>,
}

/// The texts of messages. Placeholders are {{code}}, {{expires_at}}, {{issuer}}, {{username}},
/// {{service}} and {{context}}, which is what the user confirms, if the service has sent it; it is
/// appended to a text without {{context}}.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageSpec {
    /// The texts for users whose language is not among languages.
    #[serde(flatten)]
    pub texts: MessageTexts,

    /// The texts by language, for users with a locale: at most 8 tags like de or de-CH. Parts that
    /// are absent are those of the realm's own message.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "languages_schema")]
    pub languages: BTreeMap<String, MessageTexts>,
}

/// The texts of messages in one language.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageTexts {
    /// The subject of mails: one line of at most 200 characters. It defaults to: Your {{issuer}}
    /// OTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = rules::SUBJECT_CHARACTERS))]
    #[x_kube(validation = rules::placeholders_rule())]
    #[x_kube(validation = rules::one_line_rule())]
    pub subject: Option<String>,

    /// The text of mails and webhooks, at most 4000 characters. It must contain {{code}}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = rules::TEXT_CHARACTERS))]
    #[x_kube(validation = rules::placeholders_rule())]
    #[x_kube(validation = rules::code_rule())]
    pub text: Option<String>,

    /// The text of mails as HTML, at most 16000 characters, for mail programs that show HTML. It
    /// must contain {{code}}. Values are escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = rules::HTML_CHARACTERS))]
    #[x_kube(validation = rules::placeholders_rule())]
    #[x_kube(validation = rules::code_rule())]
    pub html: Option<String>,

    /// The text of text messages, at most 1000 characters, and at most 1600 with the longest
    /// values. It must contain {{code}}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = rules::SMS_CHARACTERS))]
    #[x_kube(validation = rules::placeholders_rule())]
    #[x_kube(validation = rules::code_rule())]
    pub sms: Option<String>,
}

/// Limits on how often codes are issued and sent.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Minimum number of seconds between two codes for a user, of all services together: 0 to 3600.
    /// 0 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::GENERATE_INTERVAL_SECONDS.start(), max = *rules::GENERATE_INTERVAL_SECONDS.end()))]
    pub generate_interval_seconds: Option<i32>,

    /// Maximum number of codes for a user within an hour, of all services together: 0 to 100. 0
    /// means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::GENERATES_PER_HOUR.start(), max = *rules::GENERATES_PER_HOUR.end()))]
    pub generates_per_hour: Option<i32>,

    /// Maximum number of codes that are sent for all users of the realm within an hour: 0 to
    /// 1000000. 0 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::DELIVERIES_PER_HOUR.start(), max = *rules::DELIVERIES_PER_HOUR.end()))]
    pub deliveries_per_hour: Option<i32>,

    /// Maximum number of failed attempts for a user within a day from one namespace: 0 to 1000. A
    /// success does not change it. 0 means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::FAILURES_PER_DAY.start(), max = *rules::FAILURES_PER_DAY.end()))]
    pub failures_per_day: Option<i32>,
}

/// What is recorded of each request.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditSpec {
    /// Number of days for which entries are kept: 1 to 365.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::RETENTION_DAYS.start(), max = *rules::RETENTION_DAYS.end()))]
    pub retention_days: Option<i32>,

    /// Maximum number of entries of each user's history: 10 to 500. Older ones are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::ENTRIES.start(), max = *rules::ENTRIES.end()))]
    pub entries: Option<i32>,

    /// Whether the end user's address and user agent are recorded, in the history and in the
    /// sidecars' log, if services pass them on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub origin: Option<bool>,
}

/// The allowed namespaces: those in names and those that the selector selects.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllowedNamespaces {
    /// Names of namespaces, at most 256. They need not exist yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "names_schema")]
    pub names: Vec<String>,

    /// Selects namespaces by their labels. Every requirement must be met, and there must be at
    /// least one. Everyone who may label namespaces can make the selector select them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NamespaceSelector")]
    pub selector: Option<NamespaceSelector>,
}

/// A label selector with at least one requirement.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = rules::selector_rule())]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// Labels that a namespace must have, with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "match_labels_schema")]
    #[x_kube(validation = rules::label_keys_rule())]
    pub match_labels: BTreeMap<String, String>,

    /// Requirements that a namespace's labels must meet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = rules::REQUIREMENTS))]
    pub match_expressions: Vec<Requirement>,
}

/// A requirement that a namespace's labels must meet.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = rules::values_rule())]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// The label's key.
    #[schemars(length(min = 1, max = rules::LABEL_KEY_CHARACTERS), regex(pattern = rules::LABEL_KEY_PATTERN))]
    pub key: String,

    /// How the label's value is compared with values: In, NotIn (also met without the label),
    /// Exists or DoesNotExist.
    #[schemars(schema_with = "operator_schema")]
    pub operator: Operator,

    /// The values of In and NotIn; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "values_schema")]
    pub values: Vec<String>,
}

/// How a requirement compares a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or does not exist.
    NotIn,
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

/// How codes are delivered.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// A Secret in the same namespace with the providers' settings under these keys. Mail:
    /// SMTP_SERVER, SMTP_PORT, SMTP_SECURITY, SMTP_USERNAME, SMTP_PASSWORD, SMTP_FROM_EMAIL,
    /// SMTP_EHLO_NAME, SMTP_CA. Text messages: TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN or
    /// TWILIO_API_KEY and TWILIO_API_SECRET, TWILIO_PHONE_NUMBER or TWILIO_MESSAGING_SERVICE_SID,
    /// TWILIO_API_URL, TWILIO_CA, TWILIO_ALLOW_HTTP, TWILIO_PROXY. Webhook: WEBHOOK_URL,
    /// WEBHOOK_SECRET, WEBHOOK_CA, WEBHOOK_ALLOW_HTTP, WEBHOOK_PROXY. The operator's own providers
    /// are then not used.
    pub secret_ref: DeliverySecret,
}

/// A Secret in the realm's own namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySecret {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = shared::NAME_CHARACTERS), regex(pattern = shared::NAME_PATTERN))]
    #[x_kube(validation = shared::pattern_rule(shared::NAME_PATTERN, shared::NAME_MESSAGE))]
    pub name: String,
}

/// What the operator reports about a realm.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TwoFactorRealmStatus {
    /// The generation of the realm that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,

    /// The current conditions of the realm. Ready summarizes what services need; Isolated says
    /// whether Redis itself denies the services of one namespace access to the keys of others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,

    /// The allowed namespaces, this one included: the first 100 by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,

    /// Number of allowed namespaces, this one included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub namespaces_served: Option<i64>,

    /// Number of users.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub users: Option<i64>,

    /// Number of users that services can verify.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub users_ready: Option<i64>,

    /// Number of pods that verify these users with a sidecar of another version than the operator.
    /// They get the operator's version when they are created again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub outdated_sidecars: Option<i64>,
}

impl Operator {
    /// All operators, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::In, Self::NotIn, Self::Exists, Self::DoesNotExist];

    /// Returns the name in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}

fn languages_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": rules::LANGUAGES,
        "additionalProperties": MessageTexts::json_schema(generator),
        "x-kubernetes-validations": [rules::languages_rule()]
    })
}

fn names_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": rules::NAMES,
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": rules::NAMESPACE_CHARACTERS,
            "pattern": rules::NAMESPACE_PATTERN
        },
        "x-kubernetes-list-type": "set"
    })
}

fn match_labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": rules::REQUIREMENTS,
        "additionalProperties": label_value()
    })
}

fn values_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": rules::VALUES, "items": label_value() })
}

fn label_value() -> serde_json::Value {
    serde_json::json!({
        "type": "string", "maxLength": rules::LABEL_VALUE_CHARACTERS, "pattern": rules::LABEL_VALUE_PATTERN
    })
}

fn operator_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": Operator::ALL.map(Operator::name) })
}

#[cfg(test)]
mod tests {
    use kube::{CustomResourceExt, Resource};
    use serde_json::json;

    use super::*;
    use crate::labels;

    #[test]
    fn the_kind_has_the_names_that_people_type() {
        let crd = TwoFactorRealm::crd();
        assert_eq!(TwoFactorRealm::api_version(&()), labels::API_VERSION);
        assert_eq!(crd.metadata.name.as_deref(), Some("twofactorrealms.twofactor.fountainai.io"));
        assert_eq!(crd.spec.scope, "Namespaced");
        // Kubernetes requires a letter at the beginning of a short name.
        assert_eq!(crd.spec.names.short_names, Some(vec!["tfr".to_owned()]));
        assert!(crd.spec.versions[0].subresources.as_ref().unwrap().status.is_some());
    }

    #[test]
    fn the_columns_are_what_an_administrator_asks() {
        let columns =
            TwoFactorRealm::crd().spec.versions.remove(0).additional_printer_columns.unwrap();
        let shown: Vec<&str> = columns
            .iter()
            .filter(|column| column.priority.is_none())
            .map(|column| column.name.as_str())
            .collect();
        assert_eq!(shown, ["Ready", "Namespaces", "Users", "Outdated", "Age"]);
    }

    #[test]
    fn nothing_in_the_status_is_required_and_an_empty_one_is_nothing() {
        let crd = serde_json::to_value(TwoFactorRealm::crd()).unwrap();
        let status =
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        assert!(status.get("required").is_none());
        assert_eq!(serde_json::to_value(TwoFactorRealmStatus::default()).unwrap(), json!({}));
    }

    #[test]
    fn an_empty_spec_is_read_and_fields_of_a_newer_version_do_not_disturb() {
        let realm: TwoFactorRealm = serde_json::from_value(json!({
            "apiVersion": labels::API_VERSION, "kind": "TwoFactorRealm", "metadata": { "name": "default" },
            "spec": { "fromTheFuture": 1 }, "status": { "fromTheFuture": 1, "users": 3 }
        }))
        .unwrap();
        assert_eq!(realm.spec, TwoFactorRealmSpec::default());
        assert_eq!(realm.status.unwrap().users, Some(3));
    }
}
