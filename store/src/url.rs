//! Parses the URL of Redis into its kind, its addresses, and the settings of connections to them.
//!
//! One server: `redis://user:password@host:6379/0`. Behind Sentinel:
//! `redis+sentinel://host:26379,host2:26379/master/0`, whose login is that of the data nodes; that
//! of the Sentinels, if they ask for one, is in `?sentinelUser=…&sentinelPassword=…`. A cluster:
//! `redis+cluster://host:7000,host2:7000`. With TLS, `rediss` in place of `redis`.

use std::fmt;

use percent_encoding::percent_decode_str;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, TlsCertificates,
};
use twofactor_core::secret::SecretText;
use twofactor_core::settings::certificates;

const SENTINEL: &str = "+sentinel";
const CLUSTER: &str = "+cluster";
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Reason why a URL is invalid. The message never contains the URL, which may hold a password.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedisUrlError {
    /// It is not a URL of Redis.
    #[error(
        "is not a Redis URL: write it like redis://user:password@host:6379/0, redis+sentinel://host:26379,host2:26379/master \
         or redis+cluster://host:7000,host2:7000, with rediss in place of redis for TLS"
    )]
    NotAUrl,
    /// It disables the check of certificates.
    #[error(
        "must not disable the check of certificates: set the certificate authority of Redis instead"
    )]
    Insecure,
    /// It does not name the master, but Sentinels can monitor several.
    #[error("must name the master: redis+sentinel://host:26379,host2:26379/master")]
    NoMaster,
    /// It names a database, but a cluster has only one.
    #[error("must not name a database: a cluster has only one")]
    DatabaseOfCluster,
}

/// Reason why a certificate authority is invalid.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedisAuthorityError {
    /// It contains no certificate.
    #[error("{0}")]
    NotACertificate(&'static str),
    /// It would be unused, because connections are not encrypted.
    #[error("is set, although the URL of Redis does not use TLS: it must begin with rediss")]
    NoTls,
}

/// Reason why a client certificate is invalid.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedisIdentityError {
    /// Certificate and key cannot be read, or do not belong together.
    #[error("cannot be read, or does not fit its key: both must be in PEM")]
    Unreadable,
    /// It would be unused, because connections are not encrypted.
    #[error("is set, although the URL of Redis does not use TLS: it must begin with rediss")]
    NoTls,
}

/// Reason why Redis cannot be connected to.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedisTargetError {
    /// The URL is invalid.
    #[error(transparent)]
    Url(#[from] RedisUrlError),
    /// The certificate authority is invalid.
    #[error("the certificate authority of Redis {0}")]
    Authority(#[from] RedisAuthorityError),
    /// The client certificate is invalid.
    #[error("the client certificate for Redis {0}")]
    Identity(#[from] RedisIdentityError),
}

/// A client certificate and its private key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate, followed by those that lead to its authority.
    pub certificate: String,
    /// The private key.
    pub key: SecretText,
}

/// What a connection to Redis is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisAccess {
    /// The URL. Can contain a password.
    pub url: SecretText,
    /// The certificate authorities (PEM) in place of the system's.
    pub authority: Option<String>,
    /// The client certificate, if Redis asks for one.
    pub identity: Option<ClientIdentity>,
}

impl RedisAccess {
    /// Returns access by a URL alone.
    #[must_use]
    pub const fn by_url(url: SecretText) -> Self {
        Self { url, authority: None, identity: None }
    }

    /// Checks that it can be used, without connecting.
    ///
    /// # Errors
    /// If a part of it is invalid.
    pub fn check(&self) -> Result<(), RedisTargetError> {
        Target::parse(self).map(drop)
    }
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Parses the address of a redirection. Redis writes an IPv6 address without brackets, and no
    /// host if it is the one of `asked`.
    pub(crate) fn of_redirection(text: &str, asked: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { asked.host.clone() } else { host.to_owned() };
        Some(Self { host, port: port.parse().ok()? })
    }

    fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let port = if port.is_empty() { default_port } else { port.parse().ok()? };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
        (!host.is_empty() && port > 0 && host.bytes().all(plain))
            .then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// Settings of the connections to all servers of one kind.
#[derive(Clone)]
pub(crate) struct Endpoint {
    tls: bool,
    certificates: Certificates,
    settings: RedisConnectionInfo,
}

/// The certificates of connections; the system's authorities if there are none.
#[derive(Clone, Default)]
struct Certificates(Option<TlsCertificates>);

impl Endpoint {
    /// Creates a client for the server at `address`.
    pub(crate) fn client(&self, address: &Address) -> Result<Client, redis::RedisError> {
        let (host, port) = (address.host.clone(), address.port);
        let address = if self.tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        open(
            address.into_connection_info()?.set_redis_settings(self.settings.clone()),
            &self.certificates,
        )
    }
}

fn open(
    information: ConnectionInfo,
    certificates: &Certificates,
) -> Result<Client, redis::RedisError> {
    match &certificates.0 {
        Some(certificates) => Client::build_with_tls(information, certificates.clone()),
        None => Client::open(information),
    }
}

/// The kinds of Redis.
#[derive(Clone)]
pub(crate) enum Kind {
    /// One server, or a proxy in front of it.
    Standalone(Client),
    /// One master and its replicas, which Sentinels monitor.
    Sentinel { sentinels: Vec<Address>, of_sentinels: Endpoint, master: String, of_data: Endpoint },
    /// Several masters, each with a part of the keys.
    Cluster { seeds: Vec<Address>, endpoint: Endpoint },
}

/// A parsed URL.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    /// Whether connections select another database than the first.
    pub(crate) selects_database: bool,
}

impl Target {
    /// Parses what a connection is made with.
    pub(crate) fn parse(access: &RedisAccess) -> Result<Self, RedisTargetError> {
        // A Secret that was created from a file ends with a line break.
        let url = access.url.expose_secret().trim_end_matches(['\r', '\n']);
        let (scheme, _) = url.split_once("://").ok_or(RedisUrlError::NotAUrl)?;
        let tls = ["rediss", "valkeys"].iter().any(|known| scheme.split('+').next() == Some(known));
        if url.contains('#') {
            let insecure = url.ends_with("#insecure");
            return Err(
                if insecure { RedisUrlError::Insecure } else { RedisUrlError::NotAUrl }.into()
            );
        }
        let certificates = Certificates::of(access, tls)?;
        let target = match Multiple::parse(url)? {
            None => standalone(url, &certificates)?,
            Some(urls) if urls.kind == CLUSTER => cluster(&urls, tls, certificates)?,
            Some(urls) => sentinel(&urls, tls, certificates)?,
        };
        Ok(target)
    }
}

impl Certificates {
    /// Checks the certificates of connections.
    fn of(access: &RedisAccess, tls: bool) -> Result<Self, RedisTargetError> {
        // These authorities replace those of the system, and are not added to them.
        let mut found = TlsCertificates { client_tls: None, root_cert: None };
        if let Some(pem) = &access.authority {
            if !tls {
                return Err(RedisAuthorityError::NoTls.into());
            }
            certificates::check(pem).map_err(RedisAuthorityError::NotACertificate)?;
            found.root_cert = Some(pem.clone().into_bytes());
            let unreadable = "contains a certificate that cannot be read";
            try_certificates(&found)
                .map_err(|_| RedisAuthorityError::NotACertificate(unreadable))?;
        }
        if let Some(ClientIdentity { certificate, key }) = &access.identity {
            if !tls {
                return Err(RedisIdentityError::NoTls.into());
            }
            found.client_tls = Some(ClientTlsConfig {
                client_cert: certificate.clone().into_bytes(),
                client_key: key.expose_secret().to_owned().into_bytes(),
            });
            try_certificates(&found).map_err(|_| RedisIdentityError::Unreadable)?;
        }
        let is_used = found.root_cert.is_some() || found.client_tls.is_some();
        Ok(Self(is_used.then_some(found)))
    }
}

/// Reads certificates as a connection does, without connecting.
fn try_certificates(certificates: &TlsCertificates) -> Result<(), redis::RedisError> {
    let nowhere = ConnectionAddr::TcpTls {
        host: "host".to_owned(),
        port: 1,
        insecure: false,
        tls_params: None,
    };
    Client::build_with_tls(nowhere.into_connection_info()?, certificates.clone()).map(drop)
}

/// Does not send the client's name, because Redis does not need it and sending it requires a
/// permission.
fn quiet(settings: &RedisConnectionInfo) -> RedisConnectionInfo {
    settings.clone().set_skip_set_lib_name()
}

fn standalone(url: &str, certificates: &Certificates) -> Result<Target, RedisUrlError> {
    let information = url.into_connection_info().map_err(|_| RedisUrlError::NotAUrl)?;
    let settings = quiet(information.redis_settings());
    let selects_database = settings.db() != 0;
    let client = open(information.set_redis_settings(settings), certificates);
    let client = client.map_err(|_| RedisUrlError::NotAUrl)?;
    Ok(Target { kind: Kind::Standalone(client), selects_database })
}

fn cluster(
    urls: &Multiple<'_>,
    tls: bool,
    certificates: Certificates,
) -> Result<Target, RedisUrlError> {
    let seeds = urls.addresses(PORT)?;
    if !matches!(urls.path.trim_matches('/'), "" | "0") {
        return Err(RedisUrlError::DatabaseOfCluster);
    }
    let endpoint = Endpoint { tls, certificates, settings: urls.settings("")? };
    Ok(Target { kind: Kind::Cluster { seeds, endpoint }, selects_database: false })
}

fn sentinel(
    urls: &Multiple<'_>,
    tls: bool,
    certificates: Certificates,
) -> Result<Target, RedisUrlError> {
    let sentinels = urls.addresses(SENTINEL_PORT)?;
    let path = urls.path.trim_matches('/');
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    let master = decoded(master)?;
    if master.is_empty() {
        return Err(RedisUrlError::NoMaster);
    }
    let settings = urls.settings(database)?;
    let selects_database = settings.db() != 0;
    let mut own = quiet(&RedisConnectionInfo::default());
    if let Some(user) = urls.parameter("sentinelUser")? {
        own = own.set_username(user);
    }
    if let Some(password) = urls.parameter("sentinelPassword")? {
        own = own.set_password(password);
    }
    let of_sentinels = Endpoint { tls, certificates: certificates.clone(), settings: own };
    let of_data = Endpoint { tls, certificates, settings };
    Ok(Target {
        kind: Kind::Sentinel { sentinels, of_sentinels, master, of_data },
        selects_database,
    })
}

/// A URL with several hosts, which the client library does not support.
struct Multiple<'a> {
    kind: &'a str,
    login: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Multiple<'a> {
    /// Splits a URL into its parts. Returns nothing if it is not of this kind.
    fn parse(url: &'a str) -> Result<Option<Self>, RedisUrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(RedisUrlError::NotAUrl)?;
        let Some(kind) = scheme.find('+').map(|at| &scheme[at..]) else { return Ok(None) };
        let plain = &scheme[..scheme.len() - kind.len()];
        if !matches!(kind, SENTINEL | CLUSTER) {
            return Ok(None);
        }
        if !matches!(plain, "redis" | "rediss" | "valkey" | "valkeys") {
            return Err(RedisUrlError::NotAUrl);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        Ok(Some(Self { kind, login, hosts, path, query }))
    }

    fn addresses(&self, default_port: u16) -> Result<Vec<Address>, RedisUrlError> {
        let addresses = self.hosts.split(',').map(|host| Address::parse(host, default_port));
        addresses.collect::<Option<Vec<_>>>().ok_or(RedisUrlError::NotAUrl)
    }

    /// Returns how to log in to a data node.
    fn settings(&self, database: &str) -> Result<RedisConnectionInfo, RedisUrlError> {
        let (user, password) = self.login.split_once(':').unwrap_or((self.login, ""));
        let mut settings = quiet(&RedisConnectionInfo::default());
        if !user.is_empty() {
            settings = settings.set_username(decoded(user)?);
        }
        if !password.is_empty() {
            settings = settings.set_password(decoded(password)?);
        }
        if !database.is_empty() {
            settings = settings.set_db(database.parse().map_err(|_| RedisUrlError::NotAUrl)?);
        }
        Ok(settings)
    }

    fn parameter(&self, name: &str) -> Result<Option<String>, RedisUrlError> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(known, _)| *known == name).map(|(_, value)| decoded(value)).transpose()
    }
}

fn decoded(text: &str) -> Result<String, RedisUrlError> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| RedisUrlError::NotAUrl)
}

/// Replaces the login in `url`, and nothing else: the login of Sentinels stays. Returns nothing if
/// the URL has no place for a login, as that of a socket.
#[must_use]
pub fn with_login(url: &str, name: &str, password: &SecretText) -> Option<SecretText> {
    let (scheme, rest) = url.split_once("://")?;
    let plain =
        scheme.strip_suffix(SENTINEL).or_else(|| scheme.strip_suffix(CLUSTER)).unwrap_or(scheme);
    if !matches!(plain, "redis" | "rediss" | "valkey" | "valkeys") {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (name, password) = (encoded(name), encoded(password.expose_secret()));
    Some(SecretText::new(format!("{scheme}://{name}:{password}@{host}{path}")))
}

/// Returns whether a URL has a login.
#[must_use]
pub fn has_login(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

/// Returns the host of the URL of one server that is reached with TLS, and nothing for any other
/// URL.
#[must_use]
pub fn tls_host(url: &str) -> Option<String> {
    match Target::parse(&RedisAccess::by_url(SecretText::new(url.to_owned()))).ok()?.kind {
        Kind::Standalone(client) => match client.get_connection_info().addr() {
            ConnectionAddr::TcpTls { host, .. } => Some(host.clone()),
            _ => None,
        },
        Kind::Sentinel { .. } | Kind::Cluster { .. } => None,
    }
}

fn encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, authority: Option<&str>) -> Result<Target, RedisTargetError> {
        let url = SecretText::new(url.to_owned());
        let authority = authority.map(str::to_owned);
        Target::parse(&RedisAccess { url, authority, identity: None })
    }

    #[test]
    fn with_login_changes_only_the_login_of_a_url() {
        let password = SecretText::new("p:@/w".to_owned());
        for (url, expected) in [
            ("redis://host", "redis://a%3Ab:p%3A%40%2Fw@host"),
            ("redis://host:6380/2", "redis://a%3Ab:p%3A%40%2Fw@host:6380/2"),
            (
                "rediss://:old@host/0?protocol=resp3",
                "rediss://a%3Ab:p%3A%40%2Fw@host/0?protocol=resp3",
            ),
            ("redis://user:o%40ld@[::1]:6379/", "redis://a%3Ab:p%3A%40%2Fw@[::1]:6379/"),
            ("redis://host/?x=a@b", "redis://a%3Ab:p%3A%40%2Fw@host/?x=a@b"),
            ("redis+cluster://u:o@h:1,[::1]:2", "redis+cluster://a%3Ab:p%3A%40%2Fw@h:1,[::1]:2"),
            (
                "rediss+sentinel://old@h,i:2/m/1?sentinelPassword=x@y",
                "rediss+sentinel://a%3Ab:p%3A%40%2Fw@h,i:2/m/1?sentinelPassword=x@y",
            ),
        ] {
            let changed = with_login(url, "a:b", &password).unwrap();
            assert_eq!(changed.expose_secret(), expected);
            parse(changed.expose_secret(), None).unwrap();
        }
        for url in ["unix:///run/redis.sock", "redis+unix:///run/redis.sock?db=1", "host"] {
            assert_eq!(with_login(url, "a", &password), None, "{url}");
        }
    }

    #[test]
    fn tls_host_is_the_name_in_the_certificate_of_a_single_server() {
        let host = |url| tls_host(url);
        assert_eq!(host("rediss://redis.a.svc:6380/1").as_deref(), Some("redis.a.svc"));
        assert_eq!(host("rediss://:p%40@redis.a.svc").as_deref(), Some("redis.a.svc"));
        for other in ["redis://redis.a.svc", "rediss+cluster://a,b", "rediss+sentinel://a/m", "x"] {
            assert_eq!(host(other), None, "{other}");
        }
    }

    #[test]
    fn has_login_detects_the_login_of_a_url() {
        assert!(has_login("redis://:p@host/0") && has_login("redis+cluster://u@host,other"));
        assert!(
            !has_login("redis://host/0?x=a@b") && !has_login("redis+sentinel://host,other/master")
        );
    }

    #[test]
    fn sentinels_have_their_own_login() {
        let url = "redis+sentinel://u:p%40@a,[::1]:7/main/2?sentinelUser=s&sentinelPassword=t%2F";
        let target = parse(url, None).unwrap_or_else(|error| panic!("{error}"));
        assert!(target.selects_database);
        let Kind::Sentinel { sentinels, of_sentinels, master, of_data } = target.kind else {
            panic!()
        };
        assert_eq!(
            sentinels.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a:26379", "[::1]:7"]
        );
        assert_eq!(master, "main");
        assert_eq!(
            (of_data.settings.username(), of_data.settings.password()),
            (Some("u"), Some("p@"))
        );
        assert_eq!(
            (of_sentinels.settings.username(), of_sentinels.settings.password()),
            (Some("s"), Some("t/"))
        );
        assert_eq!((of_data.settings.db(), of_sentinels.settings.db()), (2, 0));
    }

    #[test]
    fn invalid_urls_are_rejected_with_a_valid_example() {
        let error = |url: &str| match parse(url, None) {
            Err(RedisTargetError::Url(error)) => error,
            _ => panic!("{url}"),
        };
        for url in
            ["", "host", "http://host", "redis+cluster://", "redis+cluster://a,,b", "x+cluster://a"]
        {
            assert_eq!(error(url), RedisUrlError::NotAUrl, "{url}");
        }
        for url in ["redis+sentinel://a:b/m", "redis+sentinel://a/m/x", "redis://h#x"] {
            assert_eq!(error(url), RedisUrlError::NotAUrl, "{url}");
        }
        assert_eq!(error("rediss://host/#insecure"), RedisUrlError::Insecure);
        assert_eq!(error("redis+sentinel://a,b"), RedisUrlError::NoMaster);
        assert_eq!(error("redis+cluster://a/1"), RedisUrlError::DatabaseOfCluster);
    }

    #[test]
    fn a_certificate_authority_requires_tls() {
        let error = |url: &str, pem: &str| match parse(url, Some(pem)) {
            Err(RedisTargetError::Authority(error)) => error,
            _ => panic!("{url}"),
        };
        assert_eq!(error("redis://host", "x"), RedisAuthorityError::NoTls);
        let is_invalid = |url: &str, pem: &str| {
            matches!(error(url, pem), RedisAuthorityError::NotACertificate(_))
        };
        assert!(is_invalid("rediss://host", "x"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(is_invalid("rediss+cluster://host", broken));
    }

    #[test]
    fn an_address_of_a_redirection_may_be_short() {
        let asked = Address { host: "asked".to_owned(), port: 1 };
        let of = |text| Address::of_redirection(text, &asked).map(|address| address.to_string());
        assert_eq!(of("127.0.0.1:7000").as_deref(), Some("127.0.0.1:7000"));
        assert_eq!(of("::1:7000").as_deref(), Some("[::1]:7000"));
        assert_eq!(of(":7000").as_deref(), Some("asked:7000"));
        assert_eq!(of("x"), None);
    }
}
