//! Makes the certificate of a Redis that was installed with the operator, and the authority that
//! signs it, and replaces both before they end. All are in one Secret, of which Redis gets its
//! certificate with the key. The operator and the services check the certificate against the
//! authorities.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use twofactor_core::time::UnixMillis;
use twofactor_store::clock::Clock;

use crate::certificates::authority::{AuthorityError, Root};
use crate::certificates::rotation::{self, Authorities, Damage, Lifetimes, Shown};
use crate::certificates::served::Served;
use crate::k8s::owned_secret::owned_secret;
use crate::k8s::request::{self, ApiError};

/// The keys of the certificate of Redis. Those of the authorities are [`rotation`]'s.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";
/// Pause before the Secret is tried to make again.
const PAUSE: Duration = Duration::from_secs(2);

type Data = BTreeMap<String, ByteString>;

/// Where the certificate is, and what it is for.
#[derive(Clone, Debug)]
pub struct CertificateSource {
    /// Name of the Secret, in `namespace`.
    pub secret: String,
    /// The operator's namespace.
    pub namespace: String,
    /// Host name or address in the URL of Redis.
    pub host: String,
    /// Lifetimes of the authority and of the certificate.
    pub lifetimes: Lifetimes,
}

/// What clients of Redis check its certificate against, and the moments at which both end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCertificate {
    /// The authorities, as PEM.
    pub authorities: String,
    /// When the authority ends that signs.
    pub authority_until: UnixMillis,
    /// When the certificate ends.
    pub until: UnixMillis,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The Secret cannot be read, created or changed.
    #[error(
        "the Secret {secret} in the namespace {namespace} cannot be read, created or changed: {source}"
    )]
    Api {
        /// The Secret.
        secret: String,
        /// Namespace of the Secret.
        namespace: String,
        /// The error.
        source: ApiError,
    },
    /// A certificate cannot be signed.
    #[error("the authority of Redis {0}")]
    Authority(#[from] AuthorityError),
}

impl CertificateSource {
    /// Reads the Secret, takes the next step of its authority and of its certificate, and writes it
    /// if it differs. `shown` are the authorities that services have been given. If another replica
    /// writes at the same time, the call fails, and the next one reads what that replica wrote.
    pub async fn maintain(
        &self,
        client: &Client,
        shown: &Shown,
        now: UnixMillis,
    ) -> Result<ServerCertificate, CertificateError> {
        let secrets = self.secrets(client);
        let found = self.read(client).await?;
        let data = found.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
        let next = self.next(&data, shown, now)?;
        if next.data == data {
            return Ok(next.certificate);
        }
        if let Some(damage) = next.damage.filter(|_| found.is_some()) {
            tracing::error!(secret = self.secret, %damage, "authority of Redis invalid, creating a new one");
        }
        let written = match found {
            None => {
                let secret = owned_secret(&self.secret, next.data);
                request::within(secrets.create(&PostParams::default(), &secret)).await
            }
            // The Secret's version is the precondition of the write.
            Some(secret) => {
                let secret = Secret { data: Some(next.data), string_data: None, ..secret };
                request::within(secrets.replace(&self.secret, &PostParams::default(), &secret))
                    .await
            }
        };
        written.map_err(|source| self.failed(source))?;
        let until = next.certificate.until.seconds();
        tracing::info!(secret = self.secret, until, "certificate of Redis written");
        Ok(next.certificate)
    }

    /// Makes the Secret if it holds no certificate. It is not judged, because this replica does not
    /// know which authorities services were given, and its clock may be wrong.
    async fn make(&self, client: &Client) -> Result<(), CertificateError> {
        let data = self.read(client).await?.and_then(|secret| secret.data).unwrap_or_default();
        let is_made = |key: &str| data.get(key).is_some_and(|value| !value.0.is_empty());
        if [CERTIFICATE, KEY, AUTHORITY].into_iter().all(is_made) {
            return Ok(());
        }
        self.maintain(client, &Shown::default(), Clock::System.now()).await.map(drop)
    }

    async fn read(&self, client: &Client) -> Result<Option<Secret>, CertificateError> {
        let found = request::within(self.secrets(client).get(&self.secret)).await;
        request::optional(found).map_err(|source| self.failed(source))
    }

    fn secrets(&self, client: &Client) -> Api<Secret> {
        Api::namespaced(client.clone(), &self.namespace)
    }

    fn failed(&self, source: ApiError) -> CertificateError {
        CertificateError::Api {
            secret: self.secret.clone(),
            namespace: self.namespace.clone(),
            source,
        }
    }

    /// Decides what the Secret has to hold.
    fn next(&self, data: &Data, shown: &Shown, now: UnixMillis) -> Result<Next, AuthorityError> {
        let lifetimes = &self.lifetimes;
        let (authorities, damage) = match Authorities::read(data) {
            Ok(known) => {
                let step = known.step(shown, lifetimes, now);
                (known.after(step, shown, lifetimes, now)?, None)
            }
            Err(damage) => (Authorities::start(shown.roots(), lifetimes, now)?, Some(damage)),
        };
        let root = authorities.current.root();
        let mut next = authorities.data();
        let until = if let Some(until) = self.kept(data, root, now) {
            next.extend([CERTIFICATE, KEY].map(|key| (key.to_owned(), data[key].clone())));
            until
        } else {
            // It is signed in the write in which the current authority begins to sign, so that the
            // previous one may be forgotten in time.
            let names = [self.host.clone()];
            let leaf = authorities.current.sign(&names, lifetimes.leaf, now)?;
            let (certificate, key) = (leaf.certificate_pem(), leaf.key_pem());
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            next.insert(CERTIFICATE.to_owned(), bytes(&certificate));
            next.insert(KEY.to_owned(), bytes(key.expose_secret()));
            leaf.until
        };
        let certificate = ServerCertificate {
            authorities: rotation::bundle(&authorities.trusted()),
            authority_until: root.until(),
            until,
        };
        Ok(Next { data: next, certificate, damage })
    }

    /// Returns when the certificate in the Secret ends, or nothing if it has to be replaced.
    fn kept(&self, data: &Data, root: &Root, now: UnixMillis) -> Option<UnixMillis> {
        let (certificate, key) = (data.get(CERTIFICATE)?, data.get(KEY)?);
        let served = Served::from_pem(&certificate.0, &key.0).ok()?;
        let until = served.is_accepted(root, &self.host, now).then_some(served.until())?;
        // If it ends with its authority, another one would not last longer.
        let is_due = now.until(until) < self.lifetimes.leaf / 3 && until < root.until();
        (!is_due).then_some(until)
    }
}

/// What the Secret has to hold.
struct Next {
    data: Data,
    certificate: ServerCertificate,
    /// What is wrong with the authorities that it holds, or that it holds none.
    damage: Option<Damage>,
}

/// Makes the Secret, and then waits for `stop`. Every replica does so when it starts, because Redis
/// opens no port for TLS without the Secret, and the leader of before may be of a version that does
/// not make it.
pub async fn make(source: CertificateSource, client: Client, stop: CancellationToken) {
    let mut reported = None;
    let made = async {
        while let Err(error) = source.make(&client).await {
            let text = error.to_string();
            let is_race = matches!(
                error,
                CertificateError::Api {
                    source: ApiError::AlreadyExists(_) | ApiError::Conflict(_),
                    ..
                }
            );
            if !is_race && reported.as_ref() != Some(&text) {
                tracing::warn!(%error, "failed to make the certificate of Redis; trying again");
                reported = Some(text);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    stop.run_until_cancelled(made).await;
    stop.cancelled().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis::from_seconds(1_800_000_000);

    fn at(hours: u64) -> UnixMillis {
        UnixMillis::from_seconds(START.seconds() + hours * 3600)
    }

    fn source() -> CertificateSource {
        CertificateSource {
            secret: "redis".to_owned(),
            namespace: "system".to_owned(),
            host: "redis.system.svc".to_owned(),
            lifetimes: Lifetimes {
                authority: Duration::from_hours(900),
                leaf: Duration::from_hours(90),
                longest_grace: Duration::from_hours(1),
            },
        }
    }

    fn next(data: &Data, shown: &Shown, now: UnixMillis) -> Next {
        source().next(data, shown, now).unwrap()
    }

    /// What services trust now, since `since`.
    fn shown(next: &Next, since: UnixMillis) -> Shown {
        let mut shown = Shown::default();
        shown.record(&Root::all_in(next.certificate.authorities.as_bytes()), since);
        shown
    }

    #[test]
    fn a_secret_that_needs_no_change_is_not_written() {
        let first = next(&Data::new(), &Shown::default(), START);
        assert_eq!((first.certificate.until, first.certificate.authority_until), (at(90), at(900)));
        for hours in [0, 1, 59] {
            let again = next(&first.data, &Shown::default(), at(hours));
            assert!(again.data == first.data && again.damage.is_none(), "after {hours} hours");
            assert_eq!(again.certificate, first.certificate);
        }
    }

    #[test]
    fn a_certificate_is_replaced_before_it_ends_and_the_authority_stays() {
        let first = next(&Data::new(), &Shown::default(), START);
        let renewed = next(&first.data, &shown(&first, START), at(61));
        assert_eq!(renewed.certificate.until, at(61 + 90));
        assert_eq!(renewed.certificate.authorities, first.certificate.authorities);
        assert_eq!(renewed.data["ca.key"], first.data["ca.key"]);
        assert_ne!(renewed.data[KEY], first.data[KEY]);
    }

    #[test]
    fn every_certificate_is_accepted_by_services_that_know_the_bundle_of_a_grace_time_ago() {
        let (mut current, mut since) = (next(&Data::new(), &Shown::default(), START), START);
        let mut authorities = vec![current.certificate.authorities.clone()];
        // Services know what was written an hour ago.
        for half_hours in 1..4000_u64 {
            let now = UnixMillis::from_seconds(START.seconds() + half_hours * 1800);
            let known = Root::all_in(current.certificate.authorities.as_bytes());
            let after = next(&current.data, &shown(&current, since), now);
            let accepts = |root: &Root| {
                let name = "redis.system.svc";
                let (certificate, key) = (&after.data[CERTIFICATE].0, &after.data[KEY].0);
                Served::from_pem(certificate, key).unwrap().is_accepted(root, name, now)
            };
            assert!(known.iter().any(accepts), "after {half_hours} half hours");
            if after.certificate.authorities != current.certificate.authorities {
                since = now;
                authorities.push(after.certificate.authorities.clone());
            }
            current = after;
        }
        let counts: Vec<_> = authorities.iter().map(|it| it.matches("BEGIN").count()).collect();
        assert_eq!(counts[..5], [1, 2, 2, 1, 2], "prepared, promoted, forgotten, and again");
    }

    #[test]
    fn what_is_spoilt_or_lost_is_made_again_and_services_trust_both_for_a_while() {
        let first = next(&Data::new(), &Shown::default(), START);
        let old = first.certificate.authorities.clone();
        for key in ["ca.crt", "ca.key"] {
            let mut spoilt = first.data.clone();
            spoilt.insert(key.to_owned(), ByteString(b"none".to_vec()));
            let again = next(&spoilt, &shown(&first, START), at(1));
            assert!(again.damage.unwrap().to_string().contains(key));
            assert!(again.certificate.authorities.ends_with(&old), "services trust both");
        }
        for key in [CERTIFICATE, KEY] {
            for value in [None, Some(&b"none"[..])] {
                let mut spoilt = first.data.clone();
                spoilt.remove(key);
                spoilt.extend(value.map(|it| (key.to_owned(), ByteString(it.to_vec()))));
                let again = next(&spoilt, &shown(&first, START), at(1));
                assert!(again.damage.is_none() && again.certificate.authorities == old);
                assert_eq!(again.certificate.until, at(91));
            }
        }
        let mut moved = source();
        moved.host = "other.system.svc".to_owned();
        let again = moved.next(&first.data, &shown(&first, START), at(1)).unwrap();
        assert_ne!(again.data[CERTIFICATE], first.data[CERTIFICATE], "Redis has another name");
    }
}
