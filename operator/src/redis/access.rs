//! Follows what the connection to Redis is made with: the password in its Secret, which is watched,
//! and the files with certificates. A change is used when Redis accepts it, and until then the
//! previous one stays in use, because Redis may follow later than the operator.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use rand_core::CryptoRng;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use twofactor_core::secret::SecretText;
use twofactor_store::StoreError;
use twofactor_store::clock::Clock;
use twofactor_store::redis::{ClientIdentity, RedisAccess, RedisStore, RedisTargetError};

use super::certificate::{CertificateError, CertificateSource, ServerCertificate};
use super::certificate_end;
use super::password::{self, RedisPasswordError};
use crate::certificates::authority::Root;
use crate::certificates::rotation::Shown;
use crate::k8s::named_object::NamedObject;
use crate::state::Context;

/// Interval between reads of the files, and of the Secret if it is not watched or Redis does not
/// answer.
const PERIOD: Duration = Duration::from_secs(10);
/// Interval between reads of a Secret that is watched.
const REST: Duration = Duration::from_mins(1);
/// Minimum interval between reads, also if Redis refuses every login.
const PAUSE: Duration = Duration::from_secs(1);
/// Time after which a change that Redis does not accept is reported: longer than the kubelet takes
/// to update a mounted Secret.
const PATIENCE: Duration = Duration::from_mins(3);

/// Where the parts of the access to Redis are.
#[derive(Clone, Debug)]
pub struct AccessSource {
    /// The URL. Can contain a password.
    pub url: SecretText,
    /// The Secret with the password, in `namespace`; if absent, the URL contains it.
    pub password_secret: Option<String>,
    /// The operator's namespace.
    pub namespace: String,
    /// The files with certificates.
    pub files: CertificateFiles,
    /// The certificate of Redis, if the operator makes it.
    pub certificate: Option<CertificateSource>,
}

/// The files with certificates (PEM) for connections to Redis.
#[derive(Clone, Debug, Default)]
pub struct CertificateFiles {
    /// The authorities, in place of the system's.
    pub authority: Option<PathBuf>,
    /// The client certificate.
    pub certificate: Option<PathBuf>,
    /// The private key of the client certificate.
    pub key: Option<PathBuf>,
}

/// Why the access to Redis cannot be used.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The password is not available.
    #[error(transparent)]
    Password(#[from] RedisPasswordError),
    /// The certificate of Redis is not available.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A file cannot be read.
    #[error("{flag} {file}: {source}", file = .file.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        file: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// Only one of the two files is given.
    #[error("--redis-client-certificate-file and --redis-client-key-file need each other")]
    HalfIdentity,
    /// A part is invalid.
    #[error("{}", named(*.0))]
    Target(#[from] RedisTargetError),
    /// Redis does not accept it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Names the flag of an invalid part.
fn named(error: RedisTargetError) -> String {
    match error {
        RedisTargetError::Url(error) => format!("--redis-url {error}"),
        RedisTargetError::Authority(error) => format!("--redis-ca-file {error}"),
        RedisTargetError::Identity(error) => format!("--redis-client-certificate-file {error}"),
    }
}

impl AccessSource {
    /// Reads the access, and creates the Secret with the password if there is none. The operator
    /// may have made the certificate of Redis, which has `authorities`.
    pub async fn load_or_create(
        &self,
        client: &Client,
        authorities: Option<String>,
        random: &mut impl CryptoRng,
    ) -> Result<RedisAccess, AccessError> {
        let password = match &self.password_secret {
            Some(secret) => {
                Some(password::load_or_create(client, &self.namespace, secret, random).await?)
            }
            None => None,
        };
        self.with(password, authorities)
    }

    /// Makes or renews the certificate of Redis, if the operator does so.
    pub async fn certificate(
        &self,
        client: &Client,
        shown: &Shown,
    ) -> Result<Option<ServerCertificate>, CertificateError> {
        match &self.certificate {
            Some(source) => source.maintain(client, shown, Clock::System.now()).await.map(Some),
            None => Ok(None),
        }
    }

    /// Checks everything but the password, before there is a connection to the API server.
    pub fn check(&self) -> Result<(), AccessError> {
        let any = self.password_secret.as_ref().map(|_| SecretText::new("any".to_owned()));
        self.with(any, None).map(drop)
    }

    /// Interval between reads without a reason.
    fn period(&self) -> Duration {
        PERIOD.min(self.renewal())
    }

    /// Maximum interval between two looks at the certificate: a fraction of its lifetime, which
    /// matters only for the short lifetimes of tests.
    fn renewal(&self) -> Duration {
        self.certificate.as_ref().map_or(Duration::MAX, |source| source.lifetimes.leaf / 10)
    }

    fn with(
        &self,
        password: Option<SecretText>,
        authorities: Option<String>,
    ) -> Result<RedisAccess, AccessError> {
        let url = match password {
            Some(password) => password::put_into(&self.url, &password)?,
            None => self.url.clone(),
        };
        let (authority, identity) = self.files.read()?;
        let access = RedisAccess { url, authority: authorities.or(authority), identity };
        access.check()?;
        Ok(access)
    }
}

impl CertificateFiles {
    fn read(&self) -> Result<(Option<String>, Option<ClientIdentity>), AccessError> {
        let text = |flag, file: &Path| {
            let read = std::fs::read_to_string(file);
            read.map_err(|source| AccessError::File { flag, file: file.to_owned(), source })
        };
        let authority = self.authority.as_deref().map(|file| text("--redis-ca-file", file));
        let authority = authority.transpose()?;
        let identity = match (self.certificate.as_deref(), self.key.as_deref()) {
            (Some(certificate), Some(key)) => Some(ClientIdentity {
                certificate: text("--redis-client-certificate-file", certificate)?,
                key: SecretText::new(text("--redis-client-key-file", key)?),
            }),
            (None, None) => None,
            _ => return Err(AccessError::HalfIdentity),
        };
        Ok((authority, identity))
    }
}

/// Follows the access until `stop`.
pub async fn run(context: Arc<Context>, source: AccessSource, stop: CancellationToken) {
    let objects = [NamedObject::default(), NamedObject::default()];
    let names =
        [source.password_secret.clone(), source.certificate.as_ref().map(|it| it.secret.clone())];
    let client = context.runtime.client.clone();
    let api = Api::<PartialObjectMeta<Secret>>::namespaced(client, &source.namespace);
    let watches = objects.iter().zip(names).filter_map(|(object, name)| {
        let (api, name) = (api.clone(), name?);
        Some(async move { object.watch(api, &name).await })
    });
    let watches = futures_util::future::join_all(watches);
    let follow = follow(context.clone(), source.clone(), &objects);
    stop.run_until_cancelled(Box::pin(async { tokio::join!(watches, follow) })).await;
}

async fn follow(
    context: Arc<Context>,
    source: AccessSource,
    [password, certificate]: &[NamedObject; 2],
) {
    let refused = context.clone();
    let period = source.period();
    let rest = |object: &NamedObject| if object.is_watched() { REST } else { PERIOD };
    let mut follower = AccessFollower {
        context,
        source,
        shown: Shown::default(),
        password: Cached::default(),
        certificate: Cached::default(),
        differs: None,
        reported: None,
    };
    loop {
        follower.follow().await;
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(period) => {
                follower.password.forget_after(rest(password));
                follower.certificate.forget_after(rest(certificate).min(follower.source.renewal()));
            }
            () = refused.runtime.redis_failed.notified() => {
                follower.password.forget_after(PERIOD);
                follower.certificate.forget_after(PERIOD);
            }
            () = password.changed() => follower.password.forget(),
            () = certificate.changed() => follower.certificate.forget(),
        }
    }
}

/// What was read last. It stays known when it is to be read again.
#[derive(Default)]
struct Cached<T> {
    value: Option<T>,
    /// When it was read; absent if it has to be read again.
    read: Option<Instant>,
}

impl<T> Cached<T> {
    fn is_due(&self) -> bool {
        self.read.is_none()
    }

    fn set(&mut self, value: T) {
        (self.value, self.read) = (Some(value), Some(Instant::now()));
    }

    fn forget(&mut self) {
        self.read = None;
    }

    /// Lets it be read again if it was read that long ago.
    fn forget_after(&mut self, age: Duration) {
        self.read.take_if(|read| read.elapsed() >= age);
    }
}

struct AccessFollower {
    context: Arc<Context>,
    source: AccessSource,
    /// The authorities of Redis that services get with their credentials, if the operator makes
    /// its certificate.
    shown: Shown,
    /// The password, unless the URL contains it.
    password: Cached<Option<SecretText>>,
    /// The certificate of Redis, if the operator makes it.
    certificate: Cached<Option<ServerCertificate>>,
    /// Since when there is another access than the one in use.
    differs: Option<Instant>,
    /// The problem that was reported last.
    reported: Option<String>,
}

impl AccessFollower {
    async fn follow(&mut self) {
        let current = self.context.services.redis.borrow().clone();
        // The certificate and the password do not wait for each other.
        let result = match self.renew(&current).await {
            Err(error) if self.made().is_none() => Err(error),
            renewed => self.follow_password(current).await.and(renewed),
        };
        self.show_certificates();
        self.context.runtime.metrics.redis_access_current.set(result.is_ok().into());
        let Err(error) = result else {
            (self.differs, self.reported) = (None, None);
            return;
        };
        // Redis may follow later, and the API server may be away.
        let since = *self.differs.get_or_insert_with(Instant::now);
        let text = error.to_string();
        let is_lasting = since.elapsed() >= PATIENCE || matches!(error, AccessError::Target(_));
        if is_lasting && self.reported.as_ref() != Some(&text) {
            tracing::warn!(%error, "failed to use the changed access to Redis; the previous one stays in use");
            self.reported = Some(text);
        }
    }

    /// Maintains the certificate of Redis, if the operator makes it.
    async fn renew(&mut self, current: &RedisAccess) -> Result<(), AccessError> {
        let roots = current.authority.as_deref().map(|pem| Root::all_in(pem.as_bytes()));
        self.shown.record(&roots.unwrap_or_default(), Clock::System.now());
        if self.certificate.is_due() {
            let client = &self.context.runtime.client;
            let made = self.source.certificate(client, &self.shown).await?;
            self.certificate.set(made);
        }
        Ok(())
    }

    async fn follow_password(&mut self, current: RedisAccess) -> Result<(), AccessError> {
        let access = self.read_again().await?;
        if access == current { Ok(()) } else { self.adopt(access).await }
    }

    async fn read_again(&mut self) -> Result<RedisAccess, AccessError> {
        if self.password.is_due() {
            let client = &self.context.runtime.client;
            let AccessSource { password_secret, namespace, .. } = &self.source;
            self.password.set(match password_secret {
                Some(secret) => Some(password::read_again(client, namespace, secret).await?),
                None => None,
            });
        }
        let authorities = self.made().map(|made| made.authorities.clone());
        let password = self.password.value.clone().flatten();
        self.source.with(password, authorities)
    }

    /// Returns the certificate that the operator made or found last.
    fn made(&self) -> Option<&ServerCertificate> {
        self.certificate.value.as_ref()?.as_ref()
    }

    /// Uses other access, if Redis accepts it.
    async fn adopt(&self, access: RedisAccess) -> Result<(), AccessError> {
        let registry = &self.context.realms.registry;
        let names = registry.names_of_no_realm();
        let trial = RedisStore::with_access(&access, names, Clock::System)?;
        trial.nodes().await?;
        registry.store().change_access(&access)?;
        self.context.services.redis.send_replace(access);
        // Services get the authorities and the client certificate too.
        self.context.services.credentials_queue.all_changed();
        tracing::info!("access to Redis changed; the new one is in use");
        Ok(())
    }

    fn show_certificates(&self) {
        let access = self.context.services.redis.borrow().clone();
        let authority = access.authority.as_deref();
        let certificate = access.identity.as_ref().map(|identity| identity.certificate.as_str());
        let mut authority = authority.and_then(certificate_end::earliest);
        if let Some(made) = self.made() {
            // The authority of before may end, because it is no longer needed.
            authority = Some(made.authority_until);
        }
        let server = self.made().map(|made| made.until);
        let client = certificate.and_then(certificate_end::earliest);
        for (kind, end) in [("authority", authority), ("client", client), ("server", server)] {
            self.context.runtime.metrics.show_redis_certificate(kind, end);
        }
    }
}
