//! Defines [`TwoFactorUser`]: what an administrator writes about a user, and the status that the
//! operator writes.
//!
//! Fields are read as they were written; [`validate`](crate::validate) checks them. The schema and
//! the rules for the API server are derived from these types, with the ranges, patterns and
//! messages of `rules`.

// `KubeSchema` copies each type into a function, where its `pub` has no effect.
#![allow(unreachable_pub)]

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use twofactor_core::language::Language;
use twofactor_core::totp::{Algorithm, TotpParameters};
use twofactor_core::user::{DeliveryMethod, Username};

use crate::rules::{self as shared, user as rules};

// `kubectl explain` prints the doc comments of the fields, so they are plain text for an
// administrator.

/// What an administrator writes about a user.
#[derive(CustomResource, KubeSchema, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "twofactor.fountainai.io",
    version = "v1alpha1",
    kind = "TwoFactorUser",
    plural = "twofactorusers",
    singular = "twofactoruser",
    shortname = "tfu",
    category = "fountainai",
    namespaced,
    status = "TwoFactorUserStatus",
    derive = "PartialEq",
    doc = "A user with a second factor. The operator creates the user's TOTP secret in the Secret <name>-totp of the \
           same namespace, and FountainAI services in every allowed namespace can then ask the user for a code.",
    printcolumn(
        name = "Username",
        type_ = "string",
        json_path = ".status.username",
        description = "The name that services verify"
    ),
    printcolumn(
        name = "Delivery",
        type_ = "string",
        json_path = ".spec.deliveryMethod",
        description = "How the user gets codes"
    ),
    printcolumn(
        name = "Enabled",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enabled\")].status",
        description = "Whether neither the object nor failures disable the user"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the user is as the object says"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why the user is ready, or is not"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Secret",
        type_ = "string",
        json_path = ".status.secretName",
        description = "The Secret with the user's TOTP secret",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Details of the reason",
        priority = 1
    ),
    selectable = ".spec.enabled",
    selectable = ".spec.deliveryMethod",
    selectable = ".status.disabledByFailures",
    validation = rules::name_rule(),
    validation = rules::own_secret_rule()
)]
#[x_kube(
    validation = rules::username_rule(),
    validation = rules::email_needed_rule(),
    validation = rules::email_deliverable_rule(),
    validation = rules::phone_number_needed_rule()
)]
#[serde(rename_all = "camelCase")]
pub struct TwoFactorUserSpec {
    /// The name that services verify, compared exactly: 1 to 253 characters, no control characters.
    /// It defaults to the object's name and cannot be changed, added or removed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 1, max = Username::MAXIMUM_CHARACTERS),
        regex(pattern = rules::USERNAME_PATTERN)
    )]
    #[x_kube(validation = shared::pattern_rule(rules::USERNAME_PATTERN, rules::USERNAME_MESSAGE))]
    pub username: Option<String>,

    /// Whether services can verify the user. For a disabled user, services get the same answer as
    /// for an unknown one; the TOTP secret is kept.
    #[serde(default = "enabled_unless_said")]
    pub enabled: bool,

    /// The address that codes are mailed to, like name@example.org. It is required if
    /// deliveryMethod is email.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 3, max = rules::EMAIL_CHARACTERS),
        regex(pattern = rules::EMAIL_PATTERN)
    )]
    #[x_kube(validation = shared::pattern_rule(rules::EMAIL_PATTERN, rules::email_message()))]
    pub email: Option<String>,

    /// The number that codes are sent to as text messages, in international format: a plus sign and
    /// 7 to 15 digits, the first not 0. Put it in quotes, because YAML would read a number. It is
    /// required if deliveryMethod is sms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 8, max = rules::PHONE_NUMBER_CHARACTERS),
        regex(pattern = rules::PHONE_NUMBER_PATTERN)
    )]
    #[x_kube(validation = shared::pattern_rule(rules::PHONE_NUMBER_PATTERN, rules::phone_number_message()))]
    pub phone_number: Option<String>,

    /// How the user gets codes: email, sms, webhook (a signed request to the realm's webhook) or
    /// app (an authenticator app computes them, and none are sent).
    #[serde(default)]
    #[schemars(schema_with = "delivery_method_schema")]
    pub delivery_method: DeliveryMethod,

    /// Imports the user's TOTP secret instead of creating a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SecretReference")]
    pub secret_ref: Option<SecretReference>,

    /// How codes are computed from the TOTP secret. Every authenticator app supports the defaults.
    #[serde(default)]
    pub totp: TotpSpec,

    /// The name of the issuer that authenticator apps show: 1 to 100 characters, no colon, no
    /// control characters. It defaults to the realm's issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 1, max = shared::ISSUER_CHARACTERS),
        regex(pattern = shared::ISSUER_PATTERN)
    )]
    #[x_kube(validation = shared::pattern_rule(shared::ISSUER_PATTERN, shared::ISSUER_MESSAGE))]
    pub issuer: Option<String>,

    /// The language of the user's messages, as a tag like de or de-CH. If the realm has no texts in
    /// that language, or in the one that it is a variant of, the realm's own texts are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 2, max = Language::MAXIMUM_CHARACTERS),
        regex(pattern = shared::LANGUAGE_PATTERN)
    )]
    #[x_kube(validation = shared::pattern_rule(shared::LANGUAGE_PATTERN, shared::language_message()))]
    pub locale: Option<String>,
}

/// A key of a Secret in the user's own namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// The name of a Secret in the same namespace. It must not be the Secret that the operator
    /// writes for this user.
    #[schemars(length(min = 1, max = shared::NAME_CHARACTERS), regex(pattern = shared::NAME_PATTERN))]
    #[x_kube(validation = shared::pattern_rule(shared::NAME_PATTERN, shared::NAME_MESSAGE))]
    pub name: String,

    /// The key whose value is the TOTP secret, at least 160 bits: in base32 (32 characters), as an
    /// otpauth URI, or as the otpauth-migration URI of an export of Google Authenticator, in which
    /// the account is named like the user.
    #[serde(default = "seed_key")]
    #[schemars(length(min = 1, max = shared::NAME_CHARACTERS), regex(pattern = rules::SECRET_KEY_PATTERN))]
    #[x_kube(validation = shared::pattern_rule(rules::SECRET_KEY_PATTERN, rules::SECRET_KEY_MESSAGE))]
    pub key: String,
}

/// How codes are computed from the TOTP secret.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct TotpSpec {
    /// The hash function. Many authenticator apps support only SHA1, which is secure in HMAC.
    #[schemars(schema_with = "algorithm_schema")]
    pub algorithm: Algorithm,

    /// Number of digits of a code: 6 to 8.
    #[schemars(range(min = *rules::DIGITS.start(), max = *rules::DIGITS.end()))]
    pub digits: i32,

    /// Number of seconds after which an authenticator app shows the next code: 15 to 120.
    #[schemars(range(min = *rules::PERIOD_SECONDS.start(), max = *rules::PERIOD_SECONDS.end()))]
    pub period_seconds: i32,

    /// Number of codes before and after the current one that are accepted from an authenticator
    /// app: 0 or 1.
    #[schemars(range(min = *rules::SKEW.start(), max = *rules::SKEW.end()))]
    pub skew: i32,
}

/// What the operator reports about a user.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TwoFactorUserStatus {
    /// The generation of the user that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,

    /// The current conditions of the user. Ready summarizes the others: the user is as the object
    /// says, and disabled if it says so. Enabled is False for every user that is disabled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,

    /// The Secret with the user's TOTP secret, the otpauth URI and the QR code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub secret_name: Option<String>,

    /// The name that services verify.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub username: Option<String>,

    /// The last value of the annotation twofactor.fountainai.io/rotate that the operator has
    /// carried out. Another value requests a new TOTP secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub rotated: Option<String>,

    /// The last value of the annotation twofactor.fountainai.io/reset-failures that the operator
    /// has carried out. Another value requests that the user's failed attempts are forgotten, which
    /// also enables a user that they have disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub failures_reset: Option<String>,

    /// Whether failed attempts have disabled the user. It stays true if Redis has lost them, until
    /// they are reset.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "bool")]
    pub disabled_by_failures: bool,
}

impl Default for TwoFactorUserSpec {
    /// The values that the API server fills in for an empty spec. Such a user is not valid, because
    /// mail needs an address.
    fn default() -> Self {
        Self {
            username: None,
            enabled: enabled_unless_said(),
            email: None,
            phone_number: None,
            delivery_method: DeliveryMethod::default(),
            secret_ref: None,
            totp: TotpSpec::default(),
            issuer: None,
            locale: None,
        }
    }
}

impl Default for TotpSpec {
    fn default() -> Self {
        let parameters = TotpParameters::default();
        Self {
            algorithm: parameters.algorithm(),
            digits: parameters.digits().into(),
            period_seconds: parameters.period().try_into().unwrap_or(i32::MAX),
            skew: parameters.skew().into(),
        }
    }
}

/// Not derived, because objects are easily logged, and a log must not contain an address or a phone
/// number.
impl fmt::Debug for TwoFactorUserSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            username,
            enabled,
            email,
            phone_number,
            delivery_method,
            secret_ref,
            totp,
            issuer,
            locale,
        } = self;
        formatter
            .debug_struct("TwoFactorUserSpec")
            .field("username", username)
            .field("enabled", enabled)
            .field("email", &email.as_ref().map(|_| "redacted"))
            .field("phone_number", &phone_number.as_ref().map(|_| "redacted"))
            .field("delivery_method", delivery_method)
            .field("secret_ref", secret_ref)
            .field("totp", totp)
            .field("issuer", issuer)
            .field("locale", locale)
            .finish()
    }
}

const fn enabled_unless_said() -> bool {
    true
}

fn seed_key() -> String {
    crate::labels::SECRET_KEY_SEED.to_owned()
}

fn delivery_method_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": DeliveryMethod::ALL.map(DeliveryMethod::name) })
}

fn algorithm_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": rules::ALGORITHMS.map(Algorithm::name) })
}

/// Returns the schema that Kubernetes documents for `metav1.Condition`.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "description": "One aspect of the object's current state.",
            "properties": {
                "type": {
                    "type": "string",
                    "description": "The type of the condition, in CamelCase.",
                    "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
                },
                "status": {
                    "type": "string",
                    "description": "Whether the condition is met: True, False or Unknown.",
                    "enum": ["True", "False", "Unknown"]
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "description": "The generation of the object that the condition describes.",
                    "minimum": 0
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When the status of the condition last changed."
                },
                "reason": {
                    "type": "string",
                    "description": "The reason of the status, as one CamelCase word that programs can rely on.",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
                },
                "message": {
                    "type": "string",
                    "description": "The reason of the status, as a sentence for people.",
                    "maxLength": 32768
                }
            },
            "required": ["lastTransitionTime", "message", "reason", "status", "type"]
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"]
    })
}

#[cfg(test)]
mod tests {
    use kube::{CustomResourceExt, Resource};

    use super::*;
    use crate::labels;

    #[test]
    fn the_kind_has_the_names_that_people_type() {
        let crd = TwoFactorUser::crd();
        assert_eq!(TwoFactorUser::api_version(&()), labels::API_VERSION);
        assert_eq!(crd.metadata.name.as_deref(), Some("twofactorusers.twofactor.fountainai.io"));
        assert_eq!(crd.spec.scope, "Namespaced");
        let names = crd.spec.names;
        assert_eq!(
            (names.plural.as_str(), names.kind.as_str()),
            ("twofactorusers", "TwoFactorUser")
        );
        assert_eq!(names.short_names, Some(vec!["tfu".to_owned()]));
        assert_eq!(names.categories, Some(vec!["fountainai".to_owned()]));
        assert!(crd.spec.versions[0].subresources.as_ref().unwrap().status.is_some());
    }

    #[test]
    fn the_columns_are_what_an_administrator_asks() {
        let columns =
            TwoFactorUser::crd().spec.versions.remove(0).additional_printer_columns.unwrap();
        let shown = |wide| {
            let columns = columns.iter().filter(move |column| (column.priority == Some(1)) == wide);
            columns.map(|column| column.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(shown(false), ["Username", "Delivery", "Enabled", "Ready", "Reason", "Age"]);
        assert_eq!(shown(true), ["Secret", "Message"]);
        let ready = format!("@.type==\"{}\"", labels::CONDITION_READY);
        assert!(columns.iter().filter(|column| column.json_path.contains(&ready)).count() == 3);
    }

    #[test]
    fn conditions_are_a_list_keyed_by_type_and_nothing_in_the_status_is_required() {
        let crd = serde_json::to_value(TwoFactorUser::crd()).unwrap();
        let status =
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        assert!(status.get("required").is_none());
        let conditions = &status["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "map");
        assert_eq!(conditions["x-kubernetes-list-map-keys"], serde_json::json!(["type"]));
    }

    #[test]
    fn a_condition_of_the_library_fits_the_schema() {
        let condition = serde_json::json!({
            "type": "Ready", "status": "True", "reason": "Published", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        });
        let condition: Condition = serde_json::from_value(condition).unwrap();
        let condition = serde_json::to_value(condition).unwrap();
        let schema = conditions_schema(&mut SchemaGenerator::default()).to_value();
        let properties = schema["items"]["properties"].as_object().unwrap();
        assert!(
            condition.as_object().unwrap().keys().all(|name| properties.contains_key(name)),
            "{condition}"
        );
    }

    #[test]
    fn fields_of_a_newer_version_do_not_disturb() {
        let user = serde_json::json!({
            "apiVersion": labels::API_VERSION, "kind": "TwoFactorUser", "metadata": { "name": "alice" },
            "spec": { "fromTheFuture": 1, "totp": { "fromTheFuture": 1 } },
            "status": { "fromTheFuture": 1, "username": "alice" }
        });
        let user: TwoFactorUser = serde_json::from_value(user).unwrap();
        assert_eq!(user.spec, TwoFactorUserSpec::default());
        assert_eq!(user.status.unwrap().username.as_deref(), Some("alice"));
    }

    #[test]
    fn an_empty_status_is_serialized_as_an_empty_object() {
        assert_eq!(
            serde_json::to_value(TwoFactorUserStatus::default()).unwrap(),
            serde_json::json!({})
        );
    }

    #[test]
    fn addresses_are_not_printed() {
        let spec = TwoFactorUserSpec {
            email: Some("alice@example.org".to_owned()),
            phone_number: Some("+4930123456".to_owned()),
            ..TwoFactorUserSpec::default()
        };
        let printed = format!("{:?}", TwoFactorUser::new("a", spec));
        assert!(!printed.contains("example") && !printed.contains("4930"), "{printed}");
    }
}
