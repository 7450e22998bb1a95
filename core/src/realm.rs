//! Seals and opens the realm's record: the policy and the providers' credentials that the publisher
//! gives to sidecars.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::AuditPolicy;
use crate::key::RealmKeys;
use crate::language::Language;
use crate::limits::Limits;
use crate::message::MessageTemplates;
use crate::provider::Providers;
use crate::record::{RecordError, from_plaintext, to_plaintext};
use crate::seal::{self, Revision, Subject};
use crate::token::{RetiredKey, TokenSettings};
use crate::user::UserDefinition;

/// Initial size of the buffer, enough for a bundle of certificates beside everything else.
const INITIAL_BUFFER: usize = 64 * 1024;

/// Duration for which a delivered code is accepted: 1 to 10 minutes, the maximum that NIST SP
/// 800-63B allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct OtpLifetime(u8);

/// A lifetime outside 1 to 10 minutes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 1 to 10 minutes, not {0}")]
pub struct OtpLifetimeError(u8);

impl OtpLifetime {
    /// The longest lifetime.
    pub const LONGEST: Duration = Duration::from_mins(10);

    /// Returns the lifetime as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64 * 60)
    }
}

impl Default for OtpLifetime {
    fn default() -> Self {
        Self(5)
    }
}

impl TryFrom<u8> for OtpLifetime {
    type Error = OtpLifetimeError;

    fn try_from(minutes: u8) -> Result<Self, Self::Error> {
        if (1..=10).contains(&minutes) { Ok(Self(minutes)) } else { Err(OtpLifetimeError(minutes)) }
    }
}

impl From<OtpLifetime> for u8 {
    fn from(lifetime: OtpLifetime) -> Self {
        lifetime.0
    }
}

/// The policy of a realm, and the credentials of its providers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealmRecord {
    /// The issuer that authenticator apps show for users who have no issuer of their own.
    pub issuer: String,
    /// Duration for which a delivered code is accepted.
    pub otp_lifetime: OtpLifetime,
    /// The providers that deliver codes.
    #[serde(flatten)]
    pub providers: Providers,
    /// The texts of messages.
    #[serde(default)]
    pub message: MessageTemplates,
    /// The complete texts for languages that differ from those above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub translations: BTreeMap<Language, MessageTemplates>,
    /// The allowed namespaces, if the publisher maintains such a list. A sidecar in another
    /// namespace does not serve.
    #[serde(default)]
    pub callers: Option<BTreeSet<String>>,
    /// Token settings; absent if the realm issues no tokens.
    #[serde(default)]
    pub tokens: Option<TokenSettings>,
    /// The public keys that tokens were signed with before, while such tokens are valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired_keys: Vec<RetiredKey>,
    /// Whether answers hide who is a user and why a code was not accepted.
    #[serde(default)]
    pub uniform_answers: bool,
    /// Limits on how often codes are issued and sent.
    #[serde(default)]
    pub limits: Limits,
    /// Maximum time in seconds without an operator, after which sidecars answer 503; absent if they
    /// go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_staleness: Option<u32>,
    /// What is recorded of each request, and for how long it is kept.
    #[serde(default)]
    pub audit: AuditPolicy,
    /// Number of Redis replicas that must acknowledge a decision before a code is accepted. With 0,
    /// sidecars do not wait.
    #[serde(default)]
    pub redis_wait: u8,
}

impl Default for RealmRecord {
    /// The documented defaults (docs/reference/configuration.md).
    fn default() -> Self {
        Self {
            issuer: "FountainAI".to_owned(),
            otp_lifetime: OtpLifetime::default(),
            providers: Providers::default(),
            message: MessageTemplates::default(),
            translations: BTreeMap::new(),
            callers: None,
            tokens: None,
            retired_keys: Vec::new(),
            uniform_answers: false,
            limits: Limits::default(),
            max_staleness: None,
            audit: AuditPolicy::default(),
            redis_wait: 0,
        }
    }
}

impl RealmRecord {
    /// Returns the texts of a user's messages, in the user's language if there are such texts.
    #[must_use]
    pub fn message_of(&self, user: &UserDefinition) -> &MessageTemplates {
        let translation = user.locale.as_ref().and_then(|locale| locale.lookup(&self.translations));
        translation.unwrap_or(&self.message)
    }

    /// Returns how many namespaces share what a user may request.
    #[must_use]
    pub fn number_of_callers(&self) -> usize {
        self.callers.as_ref().map_or(1, BTreeSet::len)
    }

    /// Seals the record with `revision`.
    pub fn seal(
        &self,
        keys: &RealmKeys,
        revision: Revision,
        random: &mut impl CryptoRng,
    ) -> Vec<u8> {
        seal::seal(keys, Subject::Realm, revision, &to_plaintext(self, INITIAL_BUFFER), random)
    }

    /// Opens a realm's record.
    ///
    /// # Errors
    /// If it cannot be opened, belongs to another realm, or contains something else.
    pub fn open(keys: &RealmKeys, sealed: &[u8]) -> Result<(Revision, Self), RecordError> {
        let opened = seal::open(keys, Subject::Realm, sealed)?;
        Ok((opened.revision, from_plaintext(&opened.plaintext)?))
    }
}
