//! Defines what an administrator writes about a realm's tokens.

// `KubeSchema` copies each type into a function, where its `pub` has no effect.
#![allow(unreachable_pub)]
// `kubectl explain` prints plain text.
#![allow(clippy::doc_markdown)]

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use twofactor_core::token::{Audience, TokenAlgorithm};

use crate::rules::{self as shared, tokens as rules};

// `kubectl explain` prints the doc comments of the fields, so they are plain text for an
// administrator.

/// Signed tokens after a successful verification.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// The audiences that tokens can be for, 1 to 64. A request to verify names one of them.
    #[schemars(schema_with = "audiences_schema")]
    pub audiences: Vec<String>,

    /// How tokens are signed: HS256 with a shared key, so that everyone who can check a token can
    /// also make one, or EdDSA with a private key, whose public key is enough to check a token.
    #[serde(default)]
    #[schemars(schema_with = "algorithm_schema")]
    pub algorithm: TokenAlgorithm,

    /// Number of seconds for which a token is valid: 1 to 300. It defaults to 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = *rules::LIFETIME_SECONDS.start(), max = *rules::LIFETIME_SECONDS.end()))]
    pub lifetime_seconds: Option<i32>,

    /// A Secret in the same namespace with the key: SECRET_KEY, 32 bytes or more, for HS256, or
    /// ED25519_PRIVATE_KEY, in PEM, for EdDSA. Without it, the operator's own SECRET_KEY is used,
    /// or a key that the operator derives for this realm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "TokenSecret")]
    pub secret_ref: Option<TokenSecret>,
}

/// A Secret in the realm's own namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenSecret {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = shared::NAME_CHARACTERS), regex(pattern = shared::NAME_PATTERN))]
    #[x_kube(validation = shared::pattern_rule(shared::NAME_PATTERN, shared::NAME_MESSAGE))]
    pub name: String,
}

fn audiences_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": rules::AUDIENCES,
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": Audience::MAXIMUM_CHARACTERS,
            "pattern": rules::AUDIENCE_PATTERN
        },
        "x-kubernetes-list-type": "set"
    })
}

fn algorithm_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "enum": TokenAlgorithm::ALL.map(TokenAlgorithm::name),
        "default": TokenAlgorithm::default().name()
    })
}
