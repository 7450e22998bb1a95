//! Tests the webhook's certificates, which are created once, published in the configuration and
//! replaced without a failed request, and the server that uses them.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use reqwest::Certificate;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use twofactor_operator::testing::certificates::{SECRET, Settings, maintain};
use twofactor_operator::testing::{CertificateMetrics, Lifetimes, given_certificate};
use twofactor_server::admin::Check;
use twofactor_server::http::{Limits, serve_tls};
use twofactor_server::metrics::Registrar;
use twofactor_server::tls::{CurrentCertificate, configuration};
use twofactor_store::clock::Clock;
use twofactor_tests::certificates::Authority;
use twofactor_tests::scratch;
use twofactor_tests::wait::eventually;
use warp::Filter;
use warp::reply::Reply;

use crate::support::cluster::BOUND;
use crate::support::home::Home;

const SERVICE: &str = "webhook";

impl Home {
    /// Creates a configuration with two webhooks that match no object in this API server.
    fn configure(&self) {
        let webhook = |name: &str| {
            json!({
                "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
                "clientConfig": { "service": { "name": SERVICE, "namespace": self.namespace, "path": "/inject" } },
                "rules": [{ "apiGroups": ["nowhere.example"], "apiVersions": ["v1"], "operations": ["CREATE"],
                    "resources": ["nothings"] }],
            })
        };
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": self.namespace }, "webhooks": [webhook("a.example.com"), webhook("b.example.com")],
        });
        let folder = twofactor_tests::scratch::folder("configuration");
        let path = folder.path().join("configuration.json");
        std::fs::write(&path, configuration.to_string()).unwrap();
        let _ = self.kubectl(&["create", "-f", path.to_str().unwrap()]);
    }

    fn settings(&self, lifetimes: Lifetimes) -> Settings {
        let poll = Duration::from_millis(200);
        Settings { lifetimes, poll, ..Settings::new(&self.namespace, SERVICE, &self.namespace) }
    }

    async fn get(&self, path: &str) -> Value {
        let request = warp::http::Request::get(path).body(Vec::new()).unwrap();
        self.client.request(request).await.unwrap()
    }

    async fn configuration(&self) -> Value {
        let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
        self.get(&format!("{path}/{}", self.namespace)).await
    }

    /// The CA bundle of each webhook.
    async fn bundles(&self) -> Vec<String> {
        let configuration = self.configuration().await;
        let webhooks = configuration["webhooks"].as_array().unwrap().clone();
        webhooks.iter().map(|webhook| text(&webhook["clientConfig"]["caBundle"])).collect()
    }

    /// The authority that signs.
    async fn authority(&self) -> String {
        let secret =
            self.get(&format!("/api/v1/namespaces/{}/secrets/{SECRET}", self.namespace)).await;
        text(&secret["data"]["ca.crt"])
    }

    /// Waits until both webhooks have these roots, and `count` in all.
    async fn wait_shown(&self, expected: &[&str], count: usize) {
        eventually(BOUND, "the bundle", async || {
            let bundles = self.bundles().await;
            let good = |bundle: &String| {
                bundle.matches("BEGIN").count() == count
                    && expected.iter().all(|root| bundle.contains(root))
            };
            if bundles.iter().all(good) { Ok(()) } else { Err(format!("{bundles:?}")) }
        })
        .await;
    }
}

fn text(base64: &Value) -> String {
    let bytes = BASE64.decode(base64.as_str().unwrap_or_default().as_bytes()).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A replica with its own certificate, and a server that uses it.
struct Replica {
    address: SocketAddr,
    ready: Check,
    _stop: DropGuard,
}

impl Replica {
    async fn start(home: &Home, lifetimes: Lifetimes) -> Self {
        let (current, ready) =
            (Arc::new(CurrentCertificate::default()), Check::required("certificate"));
        let (settings, stop) = (home.settings(lifetimes), CancellationToken::new());
        let mut registrar = Registrar::default();
        let maintenance = maintain(
            home.client.clone(),
            settings,
            current.clone(),
            ready.clone(),
            CertificateMetrics::new(&mut registrar).unwrap(),
            Clock::System,
            stop.clone(),
        );
        tokio::spawn(maintenance);
        let address = serve(current, Limits::default(), stop.clone()).await;
        Self { address, ready, _stop: stop.drop_guard() }
    }

    async fn wait_ready(&self) {
        eventually(BOUND, "the replica to be ready", async || self.ready.passes()).await;
    }
}

async fn serve(
    current: Arc<CurrentCertificate>,
    limits: Limits,
    stop: CancellationToken,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = warp::body::bytes().map(|_| "hello".into_response()).boxed();
    tokio::spawn(serve_tls(listener, configuration(current).unwrap(), routes, limits, stop));
    address
}

/// A client without a connection that trusts only these roots.
fn trusting(bundle: &str, host: &str, address: SocketAddr) -> reqwest::Client {
    trusting_from(None, bundle, host, address)
}

/// The same, with an address of its own.
pub(super) fn trusting_from(
    own: Option<IpAddr>,
    bundle: &str,
    host: &str,
    address: SocketAddr,
) -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    let roots = Certificate::from_pem_bundle(bundle.as_bytes()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only(roots).resolve(host, address);
    client.local_address(own).timeout(Duration::from_secs(20)).build().unwrap()
}

async fn ask(
    client: &reqwest::Client,
    host: &str,
    address: SocketAddr,
) -> reqwest::Result<reqwest::Response> {
    client.post(format!("https://{host}:{}/inject", address.port())).body("{}").send().await
}

#[tokio::test]
async fn no_request_fails_while_authorities_and_certificates_are_replaced() {
    let (authority, leaf) = (Duration::from_secs(15), Duration::from_secs(4));
    let lifetimes = Lifetimes { authority, leaf, ..Lifetimes::default() };
    let home = Home::new().await;
    home.configure();
    let replicas = [Replica::start(&home, lifetimes).await, Replica::start(&home, lifetimes).await];
    for replica in &replicas {
        replica.wait_ready().await;
    }
    let host = format!("{SERVICE}.{}.svc", home.namespace);
    // A client that keeps its connection, as API servers do. Its certificate has expired long
    // before the end.
    let kept = trusting(&home.bundles().await[0], &host, replicas[0].address);
    let (mut authorities, mut sizes) = (BTreeSet::new(), BTreeSet::new());
    let (mut seen, began) = (VecDeque::new(), Instant::now());
    let mut asked = 0;
    loop {
        let bundle = home.bundles().await[0].clone();
        seen.push_back((Instant::now(), bundle.clone()));
        while seen.front().is_some_and(|(since, _)| since.elapsed() > Duration::from_secs(1)) {
            seen.pop_front();
        }
        for (age, bundle) in
            [("current", &bundle), ("old", seen.front().map_or(&bundle, |(_, old)| old))]
        {
            for replica in &replicas {
                let answer =
                    ask(&trusting(bundle, &host, replica.address), &host, replica.address).await;
                let answer =
                    answer.unwrap_or_else(|error| panic!("{age} bundle after {asked}: {error:?}"));
                assert_eq!(answer.status(), 200);
                assert!(replica.ready.passes(), "not ready at {:?}", began.elapsed());
                asked += 1;
            }
        }
        assert_eq!(
            ask(&kept, &host, replicas[0].address).await.expect("the kept connection").status(),
            200
        );
        sizes.insert(bundle.matches("BEGIN").count());
        authorities.insert(home.authority().await);
        if authorities.len() == 3 && bundle.matches("BEGIN").count() == 1 {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_mins(2),
            "{} authorities so far",
            authorities.len()
        );
    }
    assert_eq!(sizes, BTreeSet::from([1, 2]), "old and new overlap, and the old one goes");
    assert!(asked > 100, "{asked} requests are no stream");
}

#[tokio::test]
async fn replicas_that_start_at_the_same_time_make_one_authority() {
    let home = Home::new().await;
    home.configure();
    let lifetimes = Lifetimes::default();
    let replicas = futures_util::future::join_all((0..4).map(|_| Replica::start(&home, lifetimes)));
    let replicas = replicas.await;
    for replica in &replicas {
        replica.wait_ready().await;
    }
    let replica = &replicas[0];
    let secret = home.json(&["get", "secret", SECRET]);
    let authority = home.authority().await;
    home.wait_shown(&[&authority], 1).await;
    let host = format!("{SERVICE}.{}.svc", home.namespace);
    let answer = ask(&trusting(&authority, &host, replica.address), &host, replica.address).await;
    assert_eq!(answer.unwrap().status(), 200);
    let now = home.json(&["get", "secret", SECRET]);
    assert_eq!(now["metadata"]["resourceVersion"], secret["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn a_webhook_configuration_gets_its_ca_bundle_and_no_other_change() {
    let home = Home::new().await;
    let replica = Replica::start(&home, Lifetimes::default()).await;
    eventually(BOUND, "an authority", async || {
        home.server.try_kubectl(&["--namespace", &home.namespace, "get", "secret", SECRET])
    })
    .await;
    assert!(!replica.ready.passes(), "no client trusts it yet");
    home.configure();
    replica.wait_ready().await;
    let authority = home.authority().await;
    home.wait_shown(&[&authority], 1).await;
    let without = |mut configuration: Value| {
        for webhook in configuration["webhooks"].as_array_mut().unwrap() {
            webhook["clientConfig"].as_object_mut().unwrap().remove("caBundle");
        }
        configuration["webhooks"].clone()
    };
    let before = without(home.configuration().await);
    let patch = r#"[{"op":"remove","path":"/webhooks/1/clientConfig/caBundle"}]"#;
    for patch in [patch, &patch.replace('1', "0")] {
        let began = Instant::now();
        let _ = home.kubectl(&[
            "patch",
            "mutatingwebhookconfiguration",
            &home.namespace,
            "--type=json",
            "-p",
            patch,
        ]);
        home.wait_shown(&[&authority], 1).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    let after = home.configuration().await;
    let managers = after["metadata"]["managedFields"].as_array().unwrap();
    let ours = managers.iter().find(|entry| entry["manager"] == "twofactor-operator").unwrap();
    assert!(!ours.to_string().contains("f:rules"), "{ours}");
    assert_eq!(without(after), before);
    assert!(replica.ready.passes(), "a replica stays ready during a moment without a bundle");
}

#[tokio::test]
async fn a_lost_or_damaged_authority_is_replaced_without_a_failed_request() {
    let (authority, leaf) = (Duration::from_secs(100), Duration::from_secs(50));
    let lifetimes = Lifetimes { authority, leaf, ..Lifetimes::default() };
    let home = Home::new().await;
    home.configure();
    let replica = Replica::start(&home, lifetimes).await;
    replica.wait_ready().await;
    let host = format!("{SERVICE}.{}.svc", home.namespace);
    let damage = r#"{"data":{"ca.key":"c3BvaWx0"}}"#;
    let ways: [&[&str]; 2] =
        [&["patch", "secret", SECRET, "--type=merge", "-p", damage], &["delete", "secret", SECRET]];
    for way in ways {
        let old = home.authority().await;
        home.wait_shown(&[&old], 1).await;
        let _ = home.kubectl(way);
        let new = eventually(BOUND, "another authority", async || {
            home.server.try_kubectl(&["--namespace", &home.namespace, "get", "secret", SECRET])?;
            let found = home.authority().await;
            if found == old { Err("the old one is there".to_owned()) } else { Ok(found) }
        })
        .await;
        home.wait_shown(&[&old, &new], 2).await;
        // Until the replica uses the new authority and the bundle no longer has the old one.
        eventually(Duration::from_mins(1), "the old one to go", async || {
            let bundle = home.bundles().await[0].clone();
            let answer =
                ask(&trusting(&bundle, &host, replica.address), &host, replica.address).await;
            assert_eq!(answer.expect("an answer").status(), 200);
            !bundle.contains(&old)
        })
        .await;
    }
}

/// Writes a certificate for the webhook into a folder, as the kubelet does with that of
/// cert-manager.
fn give(folder: &Path, authority: &Authority, host: &str) {
    let leaf = authority.server(&[host]);
    fs::write(folder.join("tls.key"), leaf.key).unwrap();
    fs::write(folder.join("tls.crt"), leaf.certificate).unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_program_is_followed_and_has_to_be_trusted() {
    let home = Home::new().await;
    home.configure();
    let (folder, host) = (scratch::folder("given"), format!("{SERVICE}.{}.svc", home.namespace));
    let (current, ready) =
        (Arc::new(CurrentCertificate::default()), Check::required("certificate"));
    let settings = given_certificate::Settings {
        folder: folder.path().to_owned(),
        host: host.clone(),
        configuration: home.namespace.clone(),
        poll: Duration::from_millis(200),
    };
    let stop = CancellationToken::new();
    let mut registrar = Registrar::default();
    tokio::spawn(given_certificate::follow(
        home.client.clone(),
        settings,
        current.clone(),
        ready.clone(),
        CertificateMetrics::new(&mut registrar).unwrap(),
        Clock::System,
        stop.clone(),
    ));
    let address = serve(current.clone(), Limits::default(), stop.clone()).await;
    let _stop = stop.drop_guard();
    let inject = |authority: &Authority| {
        let bundle = BASE64.encode(authority.pem().as_bytes());
        let patch = json!([0, 1].map(|index| json!({
            "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle,
        })));
        let (kind, patch) = ("mutatingwebhookconfiguration", patch.to_string());
        let _ = home.kubectl(&["patch", kind, &home.namespace, "--type=json", "-p", &patch]);
    };
    let authority = Authority::new("cert-manager");
    give(folder.path(), &authority, &host);
    eventually(BOUND, "the certificate to be used", async || current.certificate()).await;
    assert!(!ready.passes(), "no API server trusts it yet");
    inject(&authority);
    eventually(BOUND, "the replica to be ready", async || ready.passes()).await;
    let answer = ask(&trusting(&authority.pem(), &host, address), &host, address).await;
    assert_eq!(answer.unwrap().status(), 200);

    let before = current.certificate();
    give(folder.path(), &authority, &host);
    eventually(BOUND, "the renewed certificate", async || current.certificate() != before).await;
    assert!(ready.passes());
    // The previous one stays in use instead of one whose key is not there yet.
    let renewed = current.certificate();
    fs::write(folder.path().join("tls.crt"), authority.server(&[&host]).certificate).unwrap();
    inject(&authority);
    let answer = ask(&trusting(&authority.pem(), &host, address), &host, address).await;
    assert_eq!(answer.unwrap().status(), 200);
    assert_eq!(current.certificate(), renewed);
    // An API server that trusts another authority would refuse every labelled pod.
    inject(&Authority::new("another"));
    eventually(BOUND * 2, "the replica not to be ready", async || !ready.passes()).await;
    let secrets = home.kubectl(&["get", "secrets", "--output=name"]);
    assert!(!secrets.contains(SECRET), "admission has made an authority: {secrets}");
}

fn local(authority: &Authority, current: &CurrentCertificate) {
    let leaf = authority.server(&["localhost"]);
    let chain = vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()];
    current.set(chain, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap()).unwrap();
}

#[tokio::test]
async fn a_replaced_certificate_is_used_for_new_connections_only() {
    let (one, other, current) = (Authority::new("one"), Authority::new("other"), Arc::default());
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let address = serve(Arc::clone(&current), Limits::default(), stop).await;
    let new = |authority: &Authority| trusting(&authority.pem(), "localhost", address);
    assert!(ask(&new(&one), "localhost", address).await.is_err(), "there is no certificate yet");
    local(&one, &current);
    let kept = new(&one);
    assert_eq!(ask(&kept, "localhost", address).await.unwrap().status(), 200);
    local(&other, &current);
    assert_eq!(ask(&kept, "localhost", address).await.unwrap().status(), 200);
    assert!(ask(&new(&one), "localhost", address).await.is_err());
    assert_eq!(ask(&new(&other), "localhost", address).await.unwrap().status(), 200);
    let plain = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    assert!(plain.get(format!("http://{address}/")).send().await.is_err());
}

#[tokio::test]
async fn the_webhook_server_disconnects_slow_clients() {
    let (authority, current) = (Authority::new("one"), Arc::default());
    local(&authority, &current);
    let limits = Limits {
        connections: 1,
        header_timeout: Duration::from_millis(700),
        idle: Some(Duration::from_mins(1)),
        request: Some(Duration::from_millis(500)),
        lifetime: Some(Duration::from_millis(300)),
        ..Limits::default()
    };
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let address = serve(current, limits, stop).await;
    // It holds the only allowed connection, and never starts TLS.
    let silent = TcpStream::connect(address).await.unwrap();
    let client = trusting(&authority.pem(), "localhost", address);
    let answer = ask(&client, "localhost", address).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().get("connection")), (200, None));
    drop((answer, silent));
    // An answer after the connection's lifetime is its last one.
    eventually(BOUND, "the end of the connection", async || {
        let answer = ask(&client, "localhost", address).await.unwrap();
        answer.headers().get("connection").is_some_and(|value| value == "close")
    })
    .await;
    // A body without end.
    let body = reqwest::Body::wrap_stream(Endless);
    let url = format!("https://localhost:{}/inject", address.port());
    let answer = client.post(url).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 408);
}

/// A body that never comes.
struct Endless;

impl futures_util::Stream for Endless {
    type Item = Result<Vec<u8>, std::io::Error>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_stopping_server_still_answers_and_closes_kept_connections() {
    let (authority, current) = (Authority::new("one"), Arc::default());
    local(&authority, &current);
    let stop = CancellationToken::new();
    let limits = Limits { shutdown_delay: Duration::from_secs(2), ..Limits::default() };
    let address = serve(current, limits, stop.clone()).await;
    let client = trusting(&authority.pem(), "localhost", address);
    assert_eq!(ask(&client, "localhost", address).await.unwrap().headers().get("connection"), None);
    stop.cancel();
    let began = Instant::now();
    let answer = ask(&client, "localhost", address).await.unwrap();
    assert_eq!(answer.headers().get("connection").unwrap(), "close");
    eventually(BOUND, "the end", async || ask(&client, "localhost", address).await.is_err()).await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
}
