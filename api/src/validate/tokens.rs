//! Validates what a realm says about tokens.

use std::collections::BTreeSet;

use twofactor_core::token::{Audience, TokenAlgorithm, TokenLifetime};

use super::{Findings, is_object_name};
use crate::rules::NAME_MESSAGE;
use crate::rules::tokens::{AUDIENCES, LIFETIME_SECONDS};
use crate::tokens::Tokens;

/// The validated token settings of a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPolicy {
    /// How tokens are signed.
    pub algorithm: TokenAlgorithm,
    /// The audiences that tokens can be for.
    pub audiences: BTreeSet<Audience>,
    /// The lifetime of a token.
    pub lifetime: TokenLifetime,
    /// The Secret with the key, in the realm's own namespace.
    pub secret: Option<String>,
}

pub(super) fn check(tokens: &Tokens, findings: &mut Findings) -> Option<TokenPolicy> {
    let field = "spec.tokens.audiences";
    let count = tokens.audiences.len();
    if !(1..=AUDIENCES).contains(&count) {
        findings.add(field, format_args!("must have 1 to {AUDIENCES} audiences, not {count}"));
    }
    let mut audiences = BTreeSet::new();
    for (index, audience) in tokens.audiences.iter().enumerate() {
        audiences.extend(findings.keep(&format!("{field}[{index}]"), audience.parse::<Audience>()));
    }
    let lifetime = match tokens.lifetime_seconds {
        None => Some(TokenLifetime::default()),
        Some(seconds) => {
            u16::try_from(seconds).ok().and_then(|seconds| TokenLifetime::try_from(seconds).ok())
        }
    };
    if lifetime.is_none() {
        let (first, last) = (LIFETIME_SECONDS.start(), LIFETIME_SECONDS.end());
        findings.add("spec.tokens.lifetimeSeconds", format_args!("must be {first} to {last}"));
    }
    let secret = tokens.secret_ref.as_ref().map(|secret| secret.name.clone());
    if secret.as_ref().is_some_and(|name| !is_object_name(name)) {
        findings.add("spec.tokens.secretRef.name", NAME_MESSAGE);
    }
    Some(TokenPolicy { algorithm: tokens.algorithm, audiences, lifetime: lifetime?, secret })
}
