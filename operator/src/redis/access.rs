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

use super::certificate_end;
use super::password::{self, RedisPasswordError};
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
    /// Reads the access, and creates the Secret with the password if there is none.
    pub async fn load_or_create(
        &self,
        client: &Client,
        random: &mut impl CryptoRng,
    ) -> Result<RedisAccess, AccessError> {
        let password = match &self.password_secret {
            Some(secret) => {
                Some(password::load_or_create(client, &self.namespace, secret, random).await?)
            }
            None => None,
        };
        self.with(password)
    }

    /// Checks everything but the password, before there is a connection to the API server.
    pub fn check(&self) -> Result<(), AccessError> {
        let any = self.password_secret.as_ref().map(|_| SecretText::new("any".to_owned()));
        self.with(any).map(drop)
    }

    fn with(&self, password: Option<SecretText>) -> Result<RedisAccess, AccessError> {
        let url = match password {
            Some(password) => password::put_into(&self.url, &password)?,
            None => self.url.clone(),
        };
        let (authority, identity) = self.files.read()?;
        let access = RedisAccess { url, authority, identity };
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
    let secret = NamedObject::default();
    let watch = async {
        let Some(name) = source.password_secret.as_deref() else { return };
        let client = context.runtime.client.clone();
        let api = Api::<PartialObjectMeta<Secret>>::namespaced(client, &source.namespace);
        secret.watch(api, name).await;
    };
    let follow = follow(context.clone(), source.clone(), &secret);
    stop.run_until_cancelled(Box::pin(async { tokio::join!(watch, follow) })).await;
}

async fn follow(context: Arc<Context>, source: AccessSource, secret: &NamedObject) {
    let refused = context.clone();
    let mut follower =
        AccessFollower { context, source, password: None, differs: None, reported: None };
    loop {
        follower.follow().await;
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {
                follower.forget_after(if secret.is_watched() { REST } else { PERIOD });
            }
            () = refused.runtime.redis_failed.notified() => follower.forget_after(PERIOD),
            () = secret.changed() => follower.password = None,
        }
    }
}

struct AccessFollower {
    context: Arc<Context>,
    source: AccessSource,
    /// The password as it was read last, and when. It is read again if absent.
    password: Option<(SecretText, Instant)>,
    /// Since when there is another access than the one in use.
    differs: Option<Instant>,
    /// The problem that was reported last.
    reported: Option<String>,
}

impl AccessFollower {
    async fn follow(&mut self) {
        let current = self.context.services.redis.borrow().clone();
        let found = match self.password().await {
            Ok(password) => self.source.with(password),
            Err(error) => Err(error),
        };
        let result = match found {
            Ok(access) if access == current => Ok(()),
            Ok(access) => self.adopt(access).await,
            Err(error) => Err(error),
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

    /// Returns the password, unless the URL contains it.
    async fn password(&mut self) -> Result<Option<SecretText>, AccessError> {
        let AccessSource { password_secret, namespace, .. } = &self.source;
        let Some(secret) = password_secret else { return Ok(None) };
        if let Some((password, _)) = &self.password {
            return Ok(Some(password.clone()));
        }
        let client = &self.context.runtime.client;
        let password = password::read_again(client, namespace, secret).await?;
        self.password = Some((password.clone(), Instant::now()));
        Ok(Some(password))
    }

    /// Lets the password be read again if it was read that long ago.
    fn forget_after(&mut self, age: Duration) {
        self.password.take_if(|(_, read)| read.elapsed() >= age);
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
        for (kind, pem) in [("authority", authority), ("client", certificate)] {
            let end = pem.and_then(certificate_end::earliest);
            self.context.runtime.metrics.show_redis_certificate(kind, end);
        }
    }
}
