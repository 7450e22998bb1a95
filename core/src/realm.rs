//! Seals and opens the realm's record: the policy and the providers' credentials that the publisher
//! gives to sidecars.

use std::collections::BTreeSet;
use std::time::Duration;

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::AuditPolicy;
use crate::key::RealmKeys;
use crate::limits::Limits;
use crate::message::MessageTemplates;
use crate::provider::Providers;
use crate::record::{RecordError, from_plaintext, to_plaintext};
use crate::seal::{self, Revision, Subject};
use crate::token::TokenSettings;

/// Room for a bundle of certificates beside everything else.
const LARGEST_REALM: usize = 64 * 1024;

/// How long a delivered code is accepted: 1 to 10 minutes. NIST SP 800-63B allows 10 at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct OtpLifetime(u8);

/// A lifetime outside 1 to 10 minutes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 1 to 10 minutes, not {0}")]
pub struct OtpLifetimeError(u8);

impl OtpLifetime {
    /// The lifetime as a duration.
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

/// Policy and credentials that hold for all users of a realm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealmRecord {
    /// Shown in authenticator apps for users who have no issuer of their own.
    pub issuer: String,
    /// How long a delivered code is accepted.
    pub otp_lifetime: OtpLifetime,
    /// How codes reach the users.
    #[serde(flatten)]
    pub providers: Providers,
    /// What messages say.
    #[serde(default)]
    pub message: MessageTemplates,
    /// The namespaces that are let in, where the publisher keeps such a list. A sidecar of another
    /// one does not serve.
    #[serde(default)]
    pub callers: Option<BTreeSet<String>>,
    /// Absent: a success is answered without a token.
    #[serde(default)]
    pub tokens: Option<TokenSettings>,
    /// Whether answers keep to themselves who is a user, and why a code was not accepted.
    #[serde(default)]
    pub uniform_answers: bool,
    /// How often codes are made and sent.
    #[serde(default)]
    pub limits: Limits,
    /// What is kept of each request, and for how long.
    #[serde(default)]
    pub audit: AuditPolicy,
    /// Replicas of Redis that have to know of an accepted code before it is told. None: nobody
    /// waits.
    #[serde(default)]
    pub redis_wait: u8,
}

impl Default for RealmRecord {
    /// The contract's defaults, and no way to deliver anything.
    fn default() -> Self {
        Self {
            issuer: "FountainAI".to_owned(),
            otp_lifetime: OtpLifetime::default(),
            providers: Providers::default(),
            message: MessageTemplates::default(),
            callers: None,
            tokens: None,
            uniform_answers: false,
            limits: Limits::default(),
            audit: AuditPolicy::default(),
            redis_wait: 0,
        }
    }
}

impl RealmRecord {
    /// Seals the record as `revision`.
    pub fn seal(
        &self,
        keys: &RealmKeys,
        revision: Revision,
        random: &mut impl CryptoRng,
    ) -> Vec<u8> {
        seal::seal(keys, Subject::Realm, revision, &to_plaintext(self, LARGEST_REALM), random)
    }

    /// Opens a realm's record.
    ///
    /// # Errors
    /// If it does not open, is another realm's, or holds something else.
    pub fn open(keys: &RealmKeys, sealed: &[u8]) -> Result<(Revision, Self), RecordError> {
        let opened = seal::open(keys, Subject::Realm, sealed)?;
        Ok((opened.revision, from_plaintext(&opened.plaintext)?))
    }
}
