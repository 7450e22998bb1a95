//! Tests the chart with the real helm on a real API server. No node runs here, so its pods never
//! start; they are tested by the end-to-end tests. The scripts of the Redis pod are run directly.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};
use twofactor_core::time::UnixMillis;
use twofactor_store::clock::Clock;
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::certificates::Authority;
use twofactor_tests::process::{Launch, Process};
use twofactor_tests::wait::eventually;
use twofactor_tests::{ports, previous, scratch, tools};

const NAMESPACE: &str = "twofactor-system";
const WEBHOOK: &str = "mutatingwebhookconfiguration/twofactor-operator";
/// Timeout for a command, even on a busy machine.
const BOUND: Duration = Duration::from_mins(2);

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> String {
    project().join("charts/fountainai-2fa").display().to_string()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = project().join(path);
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// A separate server, because the chart has cluster-wide objects that the tests of the operator use
/// too.
async fn server() -> &'static ApiServer {
    static SERVER: OnceCell<ApiServer> = OnceCell::const_new();
    SERVER.get_or_init(ApiServer::start).await
}

/// Held by tests that install a webhook on that server or create labelled pods there, because the
/// webhook of one release would refuse the pods of the other's test.
static WEBHOOKS: Mutex<()> = Mutex::const_new(());

async fn run(launch: Launch) -> Result<Process, String> {
    let process = launch.start();
    let status = process.wait_exit(BOUND).await;
    if status.success() { Ok(process) } else { Err(format!("({status}): {}", process.output())) }
}

/// Runs helm without the developer's settings and repositories.
async fn try_helm(args: &[&str]) -> Result<String, String> {
    run(Launch::new(tools::find("helm")).isolated().args(args))
        .await
        .map(|process| process.stdout())
}

async fn helm(args: &[&str]) -> String {
    try_helm(args).await.unwrap_or_else(|error| panic!("helm {args:?} failed: {error}"))
}

async fn helm_on(server: &ApiServer, args: &[&str]) -> String {
    let kubeconfig = server.kubeconfig_path().display().to_string();
    helm(&[&["--kubeconfig", &kubeconfig, "--namespace", NAMESPACE], args].concat()).await
}

/// The whole chart as text; `values` as for `--set`.
async fn render(values: &str) -> Result<String, String> {
    try_helm(&["template", "trial", &chart(), "--namespace", NAMESPACE, "--set", values]).await
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn get(server: &ApiServer, args: &[&str]) -> Value {
    json_of(&server.kubectl(&[&["get", "--output", "json"], args].concat()))
}

#[tokio::test]
async fn helm_lint_finds_no_fault_in_the_chart() {
    let said = helm(&["lint", "--strict", &chart()]).await;
    assert!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
}

#[test]
fn the_chart_has_the_projects_crds_rules_and_version() {
    let same = |original: String, copy: String| {
        assert_eq!(
            read(&original),
            read(&copy),
            "the copy is out of date; run: cp {original} {copy}"
        );
    };
    let copies = "charts/fountainai-2fa/files";
    for name in ["rbac.yaml", "policy.yaml"] {
        same(format!("operator/{name}"), format!("{copies}/{name}"));
    }
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(project().join(folder)).expect("a folder");
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(
        names("crds"),
        names(&format!("{copies}/crds")),
        "run: cp crds/*.yaml {copies}/crds/"
    );
    for name in names("crds") {
        same(format!("crds/{name}"), format!("{copies}/crds/{name}"));
    }
    let manifest = read("charts/fountainai-2fa/Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        manifest.contains(&format!("\nversion: {version}\n")),
        "Chart.yaml: version must be {version}"
    );
    assert!(
        manifest.contains(&format!("\nappVersion: \"{version}\"\n")),
        "Chart.yaml: appVersion must be {version}"
    );
}

#[test]
fn the_dockerfile_knows_every_crate_of_the_workspace() {
    let manifest = read("Cargo.toml");
    let members = manifest
        .lines()
        .find_map(|line| line.strip_prefix("members = "))
        .expect("members on a line");
    let dockerfile = read("Dockerfile");
    for member in
        json_of(members).as_array().expect("a list").iter().map(|member| member.as_str().unwrap())
    {
        let line = format!("COPY {member}/Cargo.toml {member}/\n");
        assert!(dockerfile.contains(&line), "Dockerfile lacks: {line}");
        let line = format!("COPY {member}/src {member}/src\n");
        assert!(member == "tests" || dockerfile.contains(&line), "Dockerfile lacks: {line}");
    }
}

/// Values that cannot work, and what the refusal names.
const INVALID: &[(&str, &str)] = &[
    ("operator.adminPort=0", "'/operator/adminPort'"),
    ("operator.webhookPort=65536", "'/operator/webhookPort'"),
    ("operator.replicas=-1", "'/operator/replicas'"),
    ("operator.replicas=0", "'/operator/replicas'"),
    ("operator.replicas=two", "'/operator/replicas'"),
    ("operator.resorces.limits.cpu=1", "'resorces'"),
    ("admission.replicas=0", "'/admission/replicas'"),
    ("sidecar.position=middle", "'/sidecar/position'"),
    ("sidecar.mesh.kind=consul", "'/sidecar/mesh/kind'"),
    ("sidecar.mesh.directPorts={0}", "'/sidecar/mesh/directPorts/0'"),
    // Values that the schema cannot compare.
    ("operator.adminPort=9443", "operator.adminPort"),
    ("sidecar.mesh.kind=istio,sidecar.mesh.directPorts={6379}", "sidecar.mesh.directPorts"),
    ("admission.terminationGracePeriodSeconds=5", "'/admission/terminationGracePeriodSeconds'"),
    ("admission.concurrency=1", "'concurrency'"),
    ("sidecars.logFormat=json", "'sidecars'"),
    ("sidecar.resources.limits.memory=lots", "'/sidecar/resources/limits/memory'"),
    ("sidecar.image.pullPolicy=Sometimes", "'/sidecar/image/pullPolicy'"),
    ("sidecar.image.digest=sha256:beef", "'/sidecar/image/digest'"),
    ("webhook.failurePolicy=Maybe", "'/webhook/failurePolicy'"),
    ("webhook.timeoutSeconds=31", "'/webhook/timeoutSeconds'"),
    ("webhook.caLifetime=1 year", "'/webhook/caLifetime'"),
    ("defaults.otpExpirationMinutes=11", "'/defaults/otpExpirationMinutes'"),
    ("defaults.issuer=a:b", "'/defaults/issuer'"),
    // Both kinds of Redis, none, half a setting, and a password in a readable place.
    ("redis.existing.url=redis://elsewhere:6379", "'/redis/existing/url'"),
    ("redis.existing.secretRef.name=mine", "'/redis/existing/secretRef/name'"),
    ("redis.enabled=false", "'/redis/existing/secretRef/name'"),
    ("redis.enabled=false,redis.existing.url=redis://:secret@elsewhere", "'/redis/existing/url'"),
    ("redis.enabled=false,redis.existing.url=http://elsewhere", "'/redis/existing/url'"),
    (
        "redis.enabled=false,redis.existing.url=redis://a,redis.existing.secretRef.name=b",
        "'/redis/existing/secretRef/name'",
    ),
    ("redis.enabled=false,redis.existing.url=redis+other://a", "'/redis/existing/url'"),
    ("redis.existing.caSecretRef.name=mine", "'/redis/existing/caSecretRef/name'"),
    ("redis.wait=17", "'/redis/wait'"),
    ("redis.maxclients=10", "'/redis/maxclients'"),
    ("redis.tls.enabled=maybe", "'/redis/tls/enabled'"),
    ("redis.tls.caLifetime=1 year", "'/redis/tls/caLifetime'"),
    ("redis.tls.certificateLifetime=soon", "'/redis/tls/certificateLifetime'"),
    ("redis.tls.certificateLifetime=59m59s", "'/redis/tls/certificateLifetime'"),
    ("redis.tls.caLifetime=3599s", "'/redis/tls/caLifetime'"),
    ("redis.tls.certificateLifetime=4381h", "redis.tls.caLifetime must be at least twice"),
    ("redis.tls.caLifetime=179m,redis.tls.certificateLifetime=1h30m", "redis.tls.caLifetime must"),
    ("webhook.certificateLifetime=10s", "'/webhook/certificateLifetime'"),
    ("webhook.caLifetime=1m", "'/webhook/caLifetime'"),
    ("webhook.caLifetime=47h", "webhook.caLifetime must be at least twice"),
    ("redis.tls.enabled=false,redis.tls.existingSecret=a", "'/redis/tls/existingSecret'"),
    (
        "redis.tls.enabled=false,redis.tls.certManager.enabled=true",
        "'/redis/tls/certManager/enabled'",
    ),
    (
        "redis.tls.existingSecret=a,redis.tls.certManager.enabled=true",
        "'/redis/tls/existingSecret'",
    ),
    ("redis.tls.certManager.issuerRef.kind=", "'/redis/tls/certManager/issuerRef/kind'"),
    ("redis.tls.certManager.enabled=true,redis.tls.caLifetime=1h", "'/redis/tls/caLifetime'"),
    ("webhook.certManager.duration=forever", "'/webhook/certManager/duration'"),
    (
        "webhook.certManager.enabled=true,webhook.certificateLifetime=1h",
        "'/webhook/certificateLifetime'",
    ),
    ("redis.maxmemory=lots", "'/redis/maxmemory'"),
    ("redis.user=0", "'/redis/user'"),
    ("redis.revisionHistoryLimit=-1", "'/redis/revisionHistoryLimit'"),
    ("namespaceOverride=Upper", "'/namespaceOverride'"),
    ("service.ipFamilyPolicy=DualStack", "'/service/ipFamilyPolicy'"),
    ("service.ipFamilies={IPv5}", "'/service/ipFamilies/0'"),
    ("operator.extraArgs=--a", "'/operator/extraArgs'"),
    ("operator.env[0].value=x", "'/operator/env/0'"),
    ("admission.extraVolumes[0].emptyDir=x", "'/admission/extraVolumes/0'"),
    ("admission.hostAliases[0].ip=10.0.0.1", "'/admission/hostAliases/0'"),
    ("networkPolicy.metricsFrom[0].pods=x", "'/networkPolicy/metricsFrom/0'"),
    ("networkPolicy.sidecarNamespaces={Upper}", "'/networkPolicy/sidecarNamespaces/0'"),
    ("metrics.rules.disabled={NoLeader}", "'/metrics/rules/disabled/0'"),
    ("metrics.rules.runbookUrl=wiki", "'/metrics/rules/runbookUrl'"),
    ("metrics.dashboards.namespace=Upper", "'/metrics/dashboards/namespace'"),
    ("test.namespace=Upper", "'/test/namespace'"),
    ("rbac.aggregate=true", "'aggregate'"),
    ("admissionPolicy.enabled=auto", "'/admissionPolicy/enabled'"),
    ("admission.serviceAccount.create=no-thanks", "'/admission/serviceAccount/create'"),
    ("metrics.podMonitor.scrapeTimeout=5", "'/metrics/podMonitor/scrapeTimeout'"),
    ("smtp.server=mail", "'/smtp/fromEmail'"),
    ("smtp.fromEmail=otp@example.org", "'/smtp/fromEmail'"),
    ("smtp.port=0", "'/smtp/port'"),
    ("smtp.server=mail,smtp.fromEmail=otp@example.org,smtp.username=otp", "'/smtp/password'"),
    (
        "smtp.server=mail,smtp.fromEmail=otp@example.org,smtp.username=otp,smtp.password=x,smtp.security=plain",
        "'/smtp/security'",
    ),
    ("twilio.accountSid=AC0123456789abcdef0123456789abcdef", "'/twilio/authToken'"),
    (
        "twilio.accountSid=AC1,twilio.authToken=x,twilio.phoneNumber=+15005550006",
        "'/twilio/accountSid'",
    ),
    (
        "twilio.accountSid=AC0123456789abcdef0123456789abcdef,twilio.authToken=x",
        "'/twilio/phoneNumber'",
    ),
    ("codesWebhook.url=https://example.org", "'/codesWebhook/secret'"),
    ("codesWebhook.url=http://example.org,codesWebhook.secret=whsec_AAAA", "'/codesWebhook/url'"),
    ("codesWebhook.secret=whsec_AAAA", "'/codesWebhook/secret'"),
    ("codesWebhook.proxy=http://proxy:3128", "'/codesWebhook/proxy'"),
    (
        "codesWebhook.url=http://example.org,codesWebhook.secret=whsec_AAAA,\
         codesWebhook.allowHttp=true,codesWebhook.proxy=http://proxy:3128",
        "'/codesWebhook/url'",
    ),
    ("providers.existingSecret=mine,twilio.proxy=http://proxy:3128", "'/twilio/proxy'"),
    ("defaults.message.text=no code", "'/defaults/message/text'"),
    (
        "providers.existingSecret=mine,smtp.server=mail,smtp.fromEmail=otp@example.org",
        "'/smtp/server'",
    ),
];

#[tokio::test]
async fn values_that_cannot_work_are_refused_by_name() {
    for (values, name) in INVALID {
        let said = render(values).await.expect_err(values);
        assert!(said.contains(*name), "{values}: {said}");
        assert!(!said.contains("nil pointer"), "{values}: {said}");
    }
}

#[tokio::test]
async fn the_chart_renders_the_same_each_time_and_no_secret_of_the_operator() {
    let first = render("").await.unwrap();
    assert_eq!(first, render("").await.unwrap());
    for absent in ["caBundle:", "kind: Secret\n", "stringData:"] {
        assert!(!first.contains(absent), "{absent}");
    }
    let mail = "smtp.server=mail.example.org,smtp.fromEmail=otp@example.org";
    let with_mail = render(mail).await.unwrap();
    assert_eq!(with_mail.matches("kind: Secret\n").count(), 1, "what was given, and no more");
    assert!(with_mail.contains(&format!("SMTP_SERVER: {}", BASE64.encode(b"mail.example.org"))));
    assert!(with_mail.contains("SMTP_PORT: NTg3\n"));
    assert_eq!(with_mail, render(mail).await.unwrap());
    let more = render(
        "twilio.accountSid=AC0123456789abcdef0123456789abcdef,twilio.authToken=token,\
         twilio.messagingServiceSid=MG0123456789abcdef0123456789abcdef,\
         codesWebhook.url=https://example.org,codesWebhook.secret=whsec_AAAA whsec_BBBB,defaults.message.sms=Code {{code}}!",
    )
    .await
    .unwrap();
    for expected in [
        format!(
            "TWILIO_MESSAGING_SERVICE_SID: {}\n",
            BASE64.encode(b"MG0123456789abcdef0123456789abcdef")
        ),
        format!("WEBHOOK_SECRET: {}\n", BASE64.encode(b"whsec_AAAA whsec_BBBB")),
        "- name: MESSAGE_SMS\n              value: Code {{code}}!\n".to_owned(),
    ] {
        assert!(more.contains(&expected), "{expected}: {more}");
    }
    assert!(!more.contains("WEBHOOK_ALLOW_HTTP: ") && !more.contains("MESSAGE_TEXT"));
    let monitored = render("metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true")
        .await
        .unwrap();
    assert!(
        monitored.contains("kind: PodMonitor\n") && monitored.contains("kind: ServiceMonitor\n")
    );
    assert!(!first.contains("monitoring.coreos.com"), "a cluster may not know that");
}

#[tokio::test]
async fn an_existing_redis_may_be_of_any_kind_and_have_a_certificate_authority() {
    for url in [
        "rediss://a:6379/1",
        "redis+sentinel://a:26379\\,b:26379/main",
        "rediss+cluster://a:7000\\,b:7000",
    ] {
        let text = render(&format!("redis.enabled=false,redis.existing.url={url}")).await.unwrap();
        let url = url.replace('\\', "");
        assert!(text.contains(&format!("value: {url}\n")), "{url}");
        assert!(!text.contains("REDIS_CA_FILE") && !text.contains("REDIS_WAIT"));
    }
    let values = "redis.enabled=false,redis.wait=1,redis.existing.secretRef.name=mine,redis.existing.caSecretRef.name=own";
    let text = render(values).await.unwrap();
    for expected in [
        "name: REDIS_CA_FILE\n",
        "secretName: own\n",
        "mountPath: /var/run/secrets/redis-ca",
        "name: REDIS_WAIT\n",
    ] {
        assert!(text.contains(expected), "{expected}");
    }
}

#[tokio::test]
async fn every_object_fits_the_schemas_of_all_supported_versions_of_kubernetes() {
    let all = project().join("tests/tools/chart-values.yaml").display().to_string();
    let chart = chart();
    let render = ["template", "trial", &chart, "--namespace", NAMESPACE];
    // Version 1.29 has no ValidatingAdmissionPolicy of this version.
    for (renders_for, versions) in [("1.29.0", 29..=29), ("1.30.0", 30..=36)] {
        for more in [&[][..], &["--values", &all]] {
            let version = ["--kube-version", renders_for];
            let rendered = helm(&[&render[..], &version, more].concat()).await;
            let folder = scratch::folder("chart-objects");
            let file = folder.path().join("objects.yaml");
            fs::write(&file, rendered).unwrap();
            let script = "exec \"$@\" < \"$0\"";
            let validate = Launch::new("sh").args(["-c", script]).arg(&file);
            let validate =
                validate.arg(tools::find("tools-python")).arg(tools::file("validate-manifests"));
            let count = format!("{} versions", versions.clone().count());
            let said = run(validate.args(versions.clone().map(|minor| format!("1.{minor}")))).await;
            assert!(said.unwrap().stdout().contains(&count));
        }
    }
}

/// Checks of the linter that the chart does not pass.
const NOT_WANTED: [&str; 4] = [
    // A tag of a release never changes, and nodes that cannot reach the registry start pods.
    "container-image-pull-policy",
    // Programs write nothing but to volumes, because their root file system is read-only.
    "container-ephemeral-storage-request-and-limit",
    // The images name their user, and on OpenShift the cluster chooses it.
    "container-security-context-user-group-id",
    // Clients of the one Redis use its Service. Kubernetes lets no upgrade change the name.
    "statefulset-has-servicename",
];

#[tokio::test]
async fn the_linter_finds_nothing_critical() {
    let folder = scratch::folder("chart-lint");
    let file = folder.path().join("objects.yaml");
    fs::write(&file, render("").await.unwrap()).unwrap();
    let ignored = NOT_WANTED.iter().flat_map(|check| ["--ignore-test", check]);
    let score = Launch::new(tools::find("kube-score")).args(["score", "--output-format=ci"]);
    let process = score.args(ignored).arg(&file).start();
    process.wait_exit(BOUND).await;
    let said = process.output();
    assert!(said.contains("[OK] twofactor-operator-controller/"), "{said}");
    // The pod of `helm test` ends by itself, and serves nothing.
    let is_of_test =
        |line: &str| line.contains("] twofactor-operator-test/") && line.contains("NetworkPolicy");
    let critical = said.lines().filter(|line| line.contains("[CRITICAL]"));
    let found: Vec<_> = critical.filter(|line| !is_of_test(line)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test]
async fn objects_for_cert_manager_fit_its_definitions() {
    let server = ApiServer::start().await;
    for kind in ["certificates", "issuers"] {
        let path = tools::find(&format!("cert-manager/cert-manager.io_{kind}.yaml"));
        let _ = server.kubectl(&["apply", "--server-side", "-f", path.to_str().unwrap()]);
    }
    let _ =
        server.kubectl(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]);
    let _ = server.kubectl(&["create", "namespace", NAMESPACE]);
    let enabled = "redis.tls.certManager.enabled=true,webhook.certManager.enabled=true";
    let issuer = ",redis.tls.certManager.issuerRef.name=mine,webhook.certManager.issuerRef.name=mine,webhook.certManager.issuerRef.kind=ClusterIssuer";
    for (values, count) in [(enabled.to_owned(), 8), (format!("{enabled}{issuer}"), 2)] {
        let text = render(&values).await.unwrap();
        let objects: Vec<&str> = text
            .split("\n---\n")
            .filter(|it| it.contains("apiVersion: cert-manager.io/"))
            .collect();
        assert_eq!(objects.len(), count, "{values}");
        let folder = scratch::folder("chart-cert-manager");
        let file = folder.path().join("objects.yaml");
        fs::write(&file, objects.join("\n---\n")).unwrap();
        let path = file.to_str().unwrap();
        let strict = ["--dry-run=server", "--validate=strict"];
        let said = server.kubectl(&[&["apply", "-f", path], &strict[..]].concat());
        assert_eq!(said.lines().count(), count, "{said}");
        assert!(text.contains(&format!(
            "cert-manager.io/inject-ca-from: {NAMESPACE}/twofactor-operator-webhook\n"
        )));
        assert!(text.contains("name: TWOFACTOR_WEBHOOK_CERTIFICATE_DIRECTORY\n"));
        assert!(text.contains("secretName: twofactor-operator-webhook\n"));
    }
    let without = render("").await.unwrap();
    assert!(!without.contains("cert-manager") && !without.contains("CERTIFICATE_DIRECTORY"));
}

#[tokio::test]
async fn policies_hold_the_accounts_where_the_cluster_has_policies() {
    const KIND: &str = "kind: ValidatingAdmissionPolicy\n";
    let on = async |values: &str, version: &str| {
        let version = ["--kube-version", version, "--set", values];
        helm(&[&["template", "trial", &chart(), "--namespace", NAMESPACE], &version[..]].concat())
            .await
    };
    assert!(!on("", "1.29.9").await.contains(KIND));
    assert!(!on("admissionPolicy.enabled=false", "1.31.0").await.contains(KIND));
    let values =
        "name=people-operator,operator.serviceAccount.name=a.b,tokens.existingSecret=shared";
    let text = on(values, "1.30.0").await;
    assert_eq!(text.matches(KIND).count(), 2);
    for expected in [
        format!("serviceaccount:{NAMESPACE}:a[.]b$"),
        format!("serviceaccount:{NAMESPACE}:people-operator-admission$"),
        "policyName: people-operator\n".to_owned(),
        "orValue('') ==\n      'twofactor-operator'".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    assert!(text.contains("'shared'") && !text.contains("twofactor-secret-key"));
}

#[tokio::test]
async fn an_administrator_may_make_accounts_and_roles_themselves() {
    let names = "operator.serviceAccount.name=mine,admission.serviceAccount.name=other";
    let none = "operator.serviceAccount.create=false,admission.serviceAccount.create=false,rbac.create=false";
    let text = render(&format!("{names},{none},test.namespace=")).await.unwrap();
    for kind in ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"] {
        assert!(!text.contains(&format!("kind: {kind}\n")), "{kind}");
    }
    // That of the test.
    assert_eq!(text.matches("kind: ServiceAccount\n").count(), 1);
    for account in ["mine", "other"] {
        assert!(text.contains(&format!("serviceAccountName: {account}\n")), "{account}");
        assert!(!text.contains(&format!("  name: {account}\n")), "{account}");
    }
}

/// The objects that the chart makes with every kind of value set.
async fn with_all_values() -> Vec<Value> {
    let all = project().join("tests/tools/chart-values.yaml").display().to_string();
    let text =
        helm(&["template", "trial", &chart(), "--namespace", NAMESPACE, "--values", &all]).await;
    let documents = text.split("\n---\n").filter(|it| it.contains("kind: "));
    documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[tokio::test]
async fn an_administrator_adds_arguments_variables_volumes_containers_and_objects() {
    let objects = with_all_values().await;
    for name in ["twofactor-operator", "twofactor-operator-controller"] {
        let deployment = of_kind(&objects, "Deployment", name);
        assert_eq!(deployment["metadata"]["namespace"], "elsewhere");
        assert_eq!(deployment["metadata"]["annotations"]["a"], "b");
        assert_eq!(deployment["spec"]["revisionHistoryLimit"], 2);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["runtimeClassName"], "gvisor");
        assert_eq!(pod["hostAliases"][0]["hostnames"], json!(["redis.example"]));
        assert_eq!(pod["securityContext"]["runAsUser"], 1_000_690_000);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["containers"][1]["name"], "beside");
        assert_eq!(pod["volumes"][0]["name"], "more");
        let container = &pod["containers"][0];
        assert_eq!(container["args"].as_array().unwrap().len(), 2);
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/more");
        // A variable of the values replaces that of the chart.
        let variables = container["env"].as_array().unwrap();
        let levels = variables.iter().filter(|it| it["name"] == "TWOFACTOR_LOG");
        assert_eq!(levels.map(|it| &it["value"]).collect::<Vec<_>>(), ["debug"]);
    }
    let controller = of_kind(&objects, "Deployment", "twofactor-operator-controller");
    let resources = &controller["spec"]["template"]["spec"]["containers"][0]["resources"];
    assert!(resources.get("limits").is_none() && resources["requests"]["cpu"] == "20m");
    let redis = &of_kind(&objects, "StatefulSet", "twofactor-redis")["spec"]["template"]["spec"];
    for identity in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert!(redis["securityContext"].get(identity).is_none(), "OpenShift chooses {identity}");
    }
    assert_eq!(of_kind(&objects, "ConfigMap", "more")["data"]["a"], "b");
    let _ = of_kind(&objects, "ConfigMap", "trial-text");
    for object in &objects {
        if object["kind"] == "Service" {
            assert_eq!(object["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
        }
    }
}

#[tokio::test]
async fn monitors_alerts_and_dashboards_are_as_the_values_say() {
    let objects = with_all_values().await;
    let rule = of_kind(&objects, "PrometheusRule", "twofactor-operator");
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
    let groups = rule["spec"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    let file: Value =
        serde_saphyr::from_str(&read("charts/fountainai-2fa/files/alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap();
    let all: usize = groups.iter().map(|group| group["rules"].as_array().unwrap().len()).sum();
    assert_eq!(rules.len(), all - 1, "one is disabled");
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert_ne!(name, "TwoFactorPodsOutdated");
        assert_eq!(rule["labels"]["team"], "platform");
        let url = format!("https://wiki.example/runbooks/{name}.md");
        assert_eq!(rule["annotations"]["runbook_url"], *url);
    }
    let monitor = of_kind(&objects, "ServiceMonitor", "twofactor-operator");
    assert_eq!(monitor["spec"]["endpoints"][0]["scrapeTimeout"], "5s");
    for name in ["operator", "service", "security"] {
        let map = of_kind(&objects, "ConfigMap", &format!("twofactor-operator-{name}-dashboard"));
        assert_eq!(map["metadata"]["namespace"], "monitoring");
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
        let text = map["data"][format!("twofactor-{name}.json")].as_str().unwrap();
        let original =
            read(format!("charts/fountainai-2fa/files/dashboards/twofactor-{name}.json"));
        assert_eq!(json_of(text), json_of(&original));
    }
}

#[tokio::test]
async fn policies_leave_metrics_to_the_scrapers_and_every_other_port_as_it_was() {
    let objects = with_all_values().await;
    let rules = |name: &str| {
        of_kind(&objects, "NetworkPolicy", name)["spec"]["ingress"].as_array().unwrap().clone()
    };
    let scraper = json!({ "namespaceSelector": { "matchLabels": { "name": "monitoring" } } });
    let controller = rules("twofactor-operator-controller");
    assert_eq!((controller.len(), &controller[0]["from"][0]), (1, &scraper));
    let admission = rules("twofactor-operator");
    assert_eq!(admission[1]["ports"][0]["port"], "webhook");
    assert!(admission[1].get("from").is_none(), "no policy can name the API server");
    let sidecars = rules("twofactor-operator-sidecars");
    let open = sidecars[0]["ports"].as_array().unwrap();
    let tcp = open.iter().filter(|it| it["protocol"] == "TCP");
    let range = |it: &Value| it["port"].as_u64().unwrap()..=it["endPort"].as_u64().unwrap();
    let tcp: Vec<u64> = tcp.flat_map(range).collect();
    let others: Vec<u64> = (1..=65535).filter(|port| *port != 18004).collect();
    assert_eq!(tcp, others);
    assert_eq!(
        (&sidecars[1]["ports"][0]["port"], &sidecars[1]["from"][0]),
        (&json!(18004), &scraper)
    );
}

#[tokio::test]
async fn images_are_named_as_the_values_say() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let text = render(&format!(
        "image.registry=mirror.example.org:5000,operator.image.tag=1.2.3-rc.1,sidecar.image.digest={digest}"
    ))
    .await
    .unwrap();
    for expected in [
        "image: mirror.example.org:5000/fountainai/twofactor-operator:1.2.3-rc.1\n".to_owned(),
        "image: mirror.example.org:5000/library/redis:7.2\n".to_owned(),
        format!("value: mirror.example.org:5000/fountainai/twofactor-sidecar@{digest}\n"),
    ] {
        assert!(text.contains(&expected), "{expected}");
    }
    let default = render("").await.unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        default.contains(&format!("image: docker.io/fountainai/twofactor-operator:{version}\n"))
    );
}

#[tokio::test]
async fn the_webhook_asks_for_client_certificates_where_a_secret_has_their_authority() {
    let values = "webhook.clientCa.existingSecret=clients,webhook.clientCa.key=ca.pem,\
                  webhook.clientCa.names={kube-apiserver,other}";
    let text = render(values).await.unwrap();
    for line in [
        "secretName: clients\n",
        "- {key: \"ca.pem\", path: ca.crt}\n",
        "- {name: webhook-client-ca, mountPath: /var/run/secrets/webhook-client-ca, readOnly: true}\n",
        "value: /var/run/secrets/webhook-client-ca/ca.crt\n",
        "value: kube-apiserver,other\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!render("").await.unwrap().contains("webhook-client-ca"));
    assert!(render("webhook.clientCa.names={kube-apiserver}").await.is_err());
}

#[tokio::test]
async fn proxies_to_providers_are_in_the_secret_of_the_providers() {
    let twilio = "twilio.accountSid=AC0123456789abcdef0123456789abcdef,twilio.authToken=t,\
                  twilio.messagingServiceSid=MG0123456789abcdef0123456789abcdef,twilio.proxy=";
    let text = render(&format!("{twilio}http://otp:word@proxy:3128")).await.unwrap();
    assert!(text.contains("TWILIO_PROXY: aHR0cDovL290cDp3b3JkQHByb3h5OjMxMjg=\n"), "{text}");
    assert!(render(&format!("{twilio}https://proxy:3128")).await.is_err());
}

#[tokio::test]
async fn a_second_operator_may_have_another_name() {
    let text = render("name=people-operator,operator.namespaces={people,staff}").await.unwrap();
    let rules = text
        .split("resourceNames:")
        .skip(1)
        .map(|rest| rest.split("verbs:").next().unwrap_or_default());
    assert!(rules.into_iter().all(|names| !names.contains("twofactor-operator")));
    assert!(text.contains("value: people-operator\n") && text.contains("value: people,staff\n"));
    // The label that selects its pods does not change, because it names the program.
    let named =
        text.lines().filter(|line| line.trim_start().starts_with("name: twofactor-operator"));
    assert_eq!(named.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test]
async fn every_pod_of_the_chart_is_admitted_where_pod_security_is_restricted() {
    let server = server().await;
    let folder = scratch::folder("chart-restricted");
    let _ = server.kubectl(&["create", "namespace", "restricted"]);
    let level =
        ["enforce", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
    let _ = server.kubectl(&["label", "namespace", "restricted", &level[0], &level[1]]);
    let kubeconfig = server.kubeconfig_path();
    let kubectl = |args: &[&str]| {
        let launch =
            Launch::new(tools::find_kubernetes("kubectl")).arg("--kubeconfig").arg(&kubeconfig);
        run(launch.args(["--namespace", "restricted"]).args(args))
    };
    let careless =
        kubectl(&["create", "deployment", "careless", "--image=any", "--dry-run=server"]).await;
    assert!(
        careless.unwrap().stderr().contains("would violate PodSecurity"),
        "the server would say so"
    );
    for (template, kind) in [
        ("controller", "deployment.apps"),
        ("admission", "deployment.apps"),
        ("redis", "statefulset.apps"),
        ("tests/test", "pod/"),
    ] {
        let show = format!("templates/{template}.yaml");
        let text = helm(&[
            "template",
            "x",
            &chart(),
            "--namespace",
            "restricted",
            "--show-only",
            &show,
            "--set",
            "test.namespace=",
        ])
        .await;
        let file = folder.path().join(template.replace('/', "-") + ".yaml");
        fs::write(&file, text).unwrap();
        let done =
            kubectl(&["apply", "--dry-run=server", "-f", file.to_str().unwrap()]).await.unwrap();
        assert!(done.stdout().contains(kind), "{}", done.output());
        assert_eq!(done.stderr(), "", "{template}");
    }
}

#[tokio::test]
async fn a_release_is_installed_upgraded_and_removed_and_users_stay() {
    let (server, _webhooks) = tokio::join!(server(), WEBHOOKS.lock());
    let _ = server.kubectl(&["create", "namespace", NAMESPACE]);
    let said = helm_on(server, &["install", "trial", &chart()]).await;
    assert!(
        said.contains("What to do next") && said.contains("What `helm uninstall trial` keeps"),
        "{said}"
    );
    let _ =
        server.kubectl(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]);

    the_rules_are_those_that_the_operator_is_tested_with(server);
    the_policies_are_those_that_the_operator_is_tested_with(server);
    definitions_are_those_of_the_project(server);
    people_get_what_their_role_says(server);
    only_pods_that_asked_meet_the_webhook(server).await;
    an_upgrade_leaves_alone_what_the_operator_wrote(server).await;
    without_the_release_users_stay_and_pods_start(server).await;
}

fn the_rules_are_those_that_the_operator_is_tested_with(server: &ApiServer) {
    let file = project().join("operator/rbac.yaml");
    let tested = server.kubectl(&[
        "create",
        "--dry-run=client",
        "--namespace",
        NAMESPACE,
        "--output=jsonpath={.kind} {.metadata.name} {.rules}{\"\\n\"}",
        "-f",
        file.to_str().unwrap(),
    ]);
    assert_eq!(tested.lines().count(), 4, "{tested}");
    for line in tested.lines() {
        let [kind, name, rules] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
        let installed = get(server, &[kind, name, "--namespace", NAMESPACE]);
        assert_eq!(installed["rules"], json_of(rules), "{kind}");
        let binding = get(server, &[&format!("{kind}Binding"), name, "--namespace", NAMESPACE]);
        assert_eq!(binding["roleRef"]["kind"], kind);
        assert_eq!(
            binding["subjects"],
            json!([{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }])
        );
    }
}

fn the_policies_are_those_that_the_operator_is_tested_with(server: &ApiServer) {
    let file = project().join("operator/policy.yaml");
    let replace = ["replace", "--dry-run=server", "--output=json", "-f", file.to_str().unwrap()];
    let tested = server.kubectl(&replace);
    let tested = serde_json::Deserializer::from_str(&tested).into_iter::<Value>();
    let tested: Vec<Value> = tested.collect::<Result<_, _>>().unwrap();
    for name in ["twofactor-operator", "twofactor-operator-admission"] {
        let tested = &of_kind(&tested, "ValidatingAdmissionPolicy", name)["spec"];
        let mut installed = get(server, &["validatingadmissionpolicy", name])["spec"].take();
        let condition = &mut installed["matchConditions"][0]["expression"];
        *condition = condition.as_str().unwrap().replace(NAMESPACE, "[^:]+").into();
        assert_eq!(installed, *tested);
        let binding = get(server, &["validatingadmissionpolicybinding", name]);
        assert_eq!(binding["spec"]["policyName"], name);
    }
}

fn definitions_are_those_of_the_project(server: &ApiServer) {
    for entry in fs::read_dir(project().join("crds")).expect("the folder of definitions") {
        let file = entry.unwrap().path();
        // The original with all defaults of the API server.
        let original = server.kubectl(&[
            "replace",
            "--dry-run=server",
            "--output=json",
            "-f",
            file.to_str().unwrap(),
        ]);
        let original = json_of(&original);
        let installed = get(server, &["crd", original["metadata"]["name"].as_str().unwrap()]);
        assert_eq!(installed["spec"], original["spec"], "{}", file.display());
        assert_eq!(installed["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
}

fn people_get_what_their_role_says(server: &ApiServer) {
    for role in ["viewer", "editor"] {
        let name = format!("chart-{role}");
        let clusterrole = format!("--clusterrole=twofactor-operator-{role}");
        let user = format!("--user={name}");
        let _ = server.kubectl(&["create", "clusterrolebinding", &name, &clusterrole, &user]);
    }
    let kinds = "twofactorusers.twofactor.fountainai.io";
    for (role, verb, what, expected) in [
        ("viewer", "list", kinds, true),
        ("viewer", "create", kinds, false),
        ("viewer", "list", "secrets", false),
        ("editor", "create", kinds, true),
        ("editor", "delete", kinds, true),
        ("editor", "patch", "twofactorusers.twofactor.fountainai.io/status", false),
        ("editor", "get", "secrets", false),
    ] {
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let answer = server.try_kubectl(&[
            "auth",
            "can-i",
            verb,
            resource,
            &format!("--subresource={subresource}"),
            &format!("--as=chart-{role}"),
            "--namespace=default",
        ]);
        assert_eq!(answer.is_ok(), expected, "{role} {verb} {what}: {answer:?}");
    }
    let aggregated = |role: &str, to: &str| {
        let role = get(server, &["clusterrole", &format!("twofactor-operator-{role}")]);
        assert!(!role["rules"].to_string().contains("secrets"));
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        role["metadata"]["labels"][label] == "true"
    };
    assert!(!aggregated("viewer", "view"), "users show addresses");
    assert!(aggregated("editor", "edit") && aggregated("editor", "admin"));
}

/// There is no pod behind the webhook's Service, so a matching pod is refused.
async fn only_pods_that_asked_meet_the_webhook(server: &ApiServer) {
    let start = |namespace: &str, labels: &str| {
        let (namespace, labels) =
            (format!("--namespace={namespace}"), format!("--labels={labels}"));
        server.try_kubectl(&["run", "any", "--image=any", "--dry-run=server", &namespace, &labels])
    };
    let label = "twofactor.fountainai.io/inject";
    // The API server uses a new webhook after a short delay.
    let refusal = eventually(BOUND, "a labelled pod to meet the webhook", async || {
        start("default", &format!("{label}=true")).err()
    })
    .await;
    assert!(refusal.contains("inject.twofactor.fountainai.io"), "{refusal}");
    let refusal =
        start("default", &format!("{label}=yes")).expect_err("the webhook checks the value");
    assert!(refusal.contains("inject.twofactor.fountainai.io"), "{refusal}");
    for (namespace, labels) in [
        ("default", "app=any".to_owned()),
        ("default", format!("{label}=false")),
        ("kube-system", format!("{label}=true")),
        (NAMESPACE, format!("{label}=true")),
    ] {
        start(namespace, &labels).unwrap_or_else(|error| panic!("{namespace} {labels}: {error}"));
    }
}

/// Writes the files of Redis' `ConfigMap` with folders and ports, without TLS and with it, that a
/// test can use.
fn lay_out(folder: &Path, [plain, tls]: [u16; 2], files: &Value) {
    for name in ["data", "run", "config", "password", "tls"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    configure(folder, [plain, tls], files);
}

fn configure(folder: &Path, [plain, tls]: [u16; 2], files: &Value) {
    let here = |name: &str| folder.join(name).display().to_string();
    for (name, text) in files.as_object().unwrap() {
        let text = text
            .as_str()
            .unwrap()
            .replace("/var/run/secrets/redis-tls", &here("tls"))
            .replace("/var/run/secrets/redis", &here("password"))
            .replace("/run/redis", &here("run"))
            .replace("/etc/redis", &here("config"))
            .replace("/data", &here("data"))
            .replace("bind * -::*", "bind 127.0.0.1")
            .replace("6379", &plain.to_string())
            .replace("6380", &tls.to_string());
        fs::write(folder.join("config").join(name), text).unwrap();
    }
}

/// The files of Redis' `ConfigMap`.
async fn redis_files(values: &str) -> Value {
    let text = render(values).await.unwrap();
    let map = text.split("\n---\n").find(|it| it.contains("redis.conf: |")).unwrap();
    let map: Value = serde_saphyr::from_str(map).unwrap();
    map["data"].clone()
}

/// The scripts of the `ConfigMap`, with other folders and without TLS, which is tested below.
#[tokio::test]
async fn redis_runs_as_its_pod_would_run_it() {
    let password = r#"pass "word\ #1"#;
    let folder = scratch::folder("chart-redis");
    let port = ports::free_port();
    let at = |name: &str| folder.path().join(name);
    lay_out(folder.path(), [port, 0], &redis_files("redis.tls.enabled=false").await);
    fs::write(at("password/password"), password).unwrap();
    let script = |name: &str| Launch::new("sh").arg(at("config").join(name));
    let redis = script("start.sh").named("redis of the chart").start();
    eventually(BOUND, "Redis to answer the probe", async || {
        redis.assert_running();
        run(script("ready.sh")).await.map(|_| ())
    })
    .await;
    run(script("live.sh")).await.unwrap();
    for file in ["cmdline", "environ"] {
        let seen = fs::read(format!("/proc/{}/{file}", redis.id())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&seen).contains("word"), "the password is in {file}");
    }
    assert!(!redis.output().contains("word"));

    let ask = async |args: &[&str]| {
        let cli = Launch::new(tools::find("redis-cli")).env("REDISCLI_AUTH", password);
        let cli = cli.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(args);
        run(cli).await.unwrap().stdout().split_whitespace().last().unwrap_or_default().to_owned()
    };
    for (name, value) in [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("maxmemory-policy", "noeviction"),
        ("maxclients", "2500"),
        ("save", "save"),
    ] {
        assert_eq!(ask(&["config", "get", name]).await, value, "{name}");
    }
    // As the operator does for each realm and namespace.
    let user = ask(&["acl", "setuser", "someone", "on", ">secret", "~twofactor:*", "+get"]).await;
    assert_eq!(user, "OK");
    assert_eq!(ask(&["set", "used", "this-code"]).await, "OK");
    redis_follows_its_password(&at, port, password).await;
    redis_with_too_many_clients_is_alive_and_ready(&at, port, password).await;
    redis.kill();
    run(script("live.sh")).await.expect_err("it is dead");
    let redis = script("start.sh").named("redis of the chart, again").start();
    eventually(BOUND, "Redis to be back", async || {
        redis.assert_running();
        run(script("ready.sh")).await.map(|_| ())
    })
    .await;
    assert_eq!(ask(&["get", "used"]).await, "this-code");
}

/// Changes the password in the mounted Secret, also twice before a probe sees it, and back.
async fn redis_follows_its_password(at: &impl Fn(&str) -> PathBuf, port: u16, password: &str) {
    let script = |name: &str| Launch::new("sh").arg(at("config").join(name));
    let accepts = async |password: &str| {
        let cli = Launch::new(tools::find("redis-cli")).env("REDISCLI_AUTH", password);
        let cli = cli.args(["-h", "127.0.0.1", "-p", &port.to_string(), "ping"]);
        run(cli).await.is_ok_and(|it| it.stdout().contains("PONG"))
    };
    let write = |password: &str| fs::write(at("password/password"), password).unwrap();
    write("second 'word\"\n");
    // Redis is alive whatever the Secret says.
    run(script("live.sh")).await.unwrap();
    assert!(accepts(password).await && !accepts("second 'word\"").await);
    run(script("ready.sh")).await.unwrap();
    assert!(!accepts(password).await && accepts("second 'word\"").await);
    write("third");
    write("fourth");
    run(script("ready.sh")).await.unwrap();
    assert!(accepts("fourth").await);
    // An empty password would open Redis.
    write("\n");
    run(script("ready.sh")).await.unwrap();
    assert!(accepts("fourth").await && !accepts("").await);
    let refused = run(script("start.sh")).await.expect_err("no password");
    assert!(refused.contains("the password of Redis is empty"), "{refused}");
    write(password);
    run(script("ready.sh")).await.unwrap();
    assert!(accepts(password).await);
}

async fn redis_with_too_many_clients_is_alive_and_ready(
    at: &impl Fn(&str) -> PathBuf,
    port: u16,
    password: &str,
) {
    let script = |name: &str| Launch::new("sh").arg(at("config").join(name));
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut client = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("AUTH").arg(password).query_async(&mut client).await.unwrap();
    let limit = |number: u32| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxclients").arg(number);
        set
    };
    limit(1).exec_async(&mut client).await.unwrap();
    // What Redis answers depends on which side is faster.
    for _ in 0..10 {
        run(script("live.sh")).await.expect("Redis is alive");
        run(script("ready.sh")).await.expect("Redis serves the clients that it has");
        if let Ok(said) = run(script("cli.sh").arg("ping")).await {
            assert!(!said.stdout().contains("PONG"), "Redis has too many clients");
        }
    }
    limit(2500).exec_async(&mut client).await.unwrap();
}

#[tokio::test]
async fn redis_has_a_certificate_by_the_operator_or_by_another_source() {
    let address = format!("value: rediss://twofactor-redis.{NAMESPACE}.svc:6380\n");
    for (values, secret, mounts) in [
        ("", "twofactor-redis-certificate", 1),
        ("redis.tls.existingSecret=mine", "mine", 2),
        ("redis.tls.certManager.enabled=true", "twofactor-redis-tls", 3),
    ] {
        let text = render(values).await.unwrap();
        assert!(text.contains(&address), "{values}");
        let is_own = secret == "twofactor-redis-certificate";
        assert_eq!(text.contains("name: REDIS_CA_FILE\n"), !is_own, "{values}");
        let variable = "name: TWOFACTOR_REDIS_CERTIFICATE_SECRET\n";
        assert_eq!(text.contains(variable), is_own, "{values}");
        assert_eq!(text.matches(&format!("secretName: {secret}\n")).count(), mounts, "{values}");
        assert_eq!(text.matches("optional: true").count(), 1, "Redis starts without it");
    }
    let issuer = "redis.tls.certManager.issuerRef.name=mine,redis.tls.certManager.issuerRef.kind=ClusterIssuer";
    let text = render(&format!("redis.tls.certManager.enabled=true,{issuer}")).await.unwrap();
    assert!(!text.contains("kind: Issuer\n"), "{text}");
    let reference = "    group: cert-manager.io\n    kind: ClusterIssuer\n    name: mine\n";
    assert!(text.contains(reference), "{text}");
    let without = render("redis.tls.enabled=false").await.unwrap();
    assert!(without.contains(&format!("value: redis://twofactor-redis.{NAMESPACE}.svc:6379\n")));
    assert!(without.contains("optional: true") && !without.contains("CERTIFICATE_SECRET"));
    for (authority, leaf) in
        [("4000h", "1500h"), ("2h", "60m"), ("7200s", "3600s"), ("180m", "1h30m")]
    {
        let values =
            format!("redis.tls.caLifetime={authority},redis.tls.certificateLifetime={leaf}");
        let text = render(&values).await.unwrap();
        for lifetime in [authority, leaf] {
            assert!(
                text.contains(&format!("value: {lifetime}\n"))
                    || text.contains(&format!("value: \"{lifetime}\"\n")),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn a_new_redis_accepts_tls_only_and_takes_over_a_renewed_certificate() {
    let folder = scratch::folder("chart-redis-tls");
    let (ports, authority) = ([(); 2].map(|()| ports::free_port()), Authority::new("redis"));
    lay_out(folder.path(), ports, &redis_files("").await);
    let at = |name: &str| folder.path().join(name);
    fs::write(at("password/password"), "secret").unwrap();
    let before = certify(&at, &authority);
    let script = |name: &str| Launch::new("sh").arg(at("config").join(name));
    let redis = script("start.sh").named("redis of the chart, with TLS").start();
    wait_ready(&redis, &script).await;
    assert!(!accepts_plain(ports[0]).await);
    assert_eq!(served(ports[1], &authority).await, before);
    let renewed = certify(&at, &authority);
    run(script("ready.sh")).await.unwrap();
    assert_eq!(served(ports[1], &authority).await, renewed);
    run(script("live.sh")).await.unwrap();
    // Another authority, as after a lost Secret.
    let other = Authority::new("another");
    let renewed = certify(&at, &other);
    run(script("ready.sh")).await.unwrap();
    assert_eq!(served(ports[1], &other).await, renewed);
    let said = run(script("cli.sh").args(["config", "get", "maxclients"])).await.unwrap();
    assert!(said.stdout().contains("2500"), "{}", said.output());
}

/// The controller makes the certificate late, or another client spoils or removes it.
#[tokio::test]
async fn redis_has_its_data_at_once_and_opens_its_port_when_there_is_a_valid_certificate() {
    let folder = scratch::folder("chart-redis-without-certificate");
    let (ports, authority) = ([(); 2].map(|()| ports::free_port()), Authority::new("redis"));
    lay_out(folder.path(), ports, &redis_files("").await);
    let at = |name: &str| folder.path().join(name);
    fs::write(at("password/password"), "secret").unwrap();
    let script = |name: &str| Launch::new("sh").arg(at("config").join(name));
    let is_closed = async |port| tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err();
    // Starts Redis, which has no port without a certificate.
    let start = async || {
        let redis = script("start.sh").named("redis of the chart, without a certificate").start();
        eventually(BOUND, "Redis to be alive", async || {
            redis.assert_running();
            run(script("live.sh")).await.map(|_| ())
        })
        .await;
        let said = run(script("ready.sh")).await.expect_err("clients cannot connect");
        assert!(said.contains("Redis has no valid certificate yet"), "{said}");
        assert!(is_closed(ports[0]).await && is_closed(ports[1]).await);
        redis
    };
    let remove = || {
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            fs::remove_file(at("tls").join(name)).unwrap();
        }
    };
    let redis = start().await;
    let written = run(script("cli.sh").args(["set", "used", "this-code"])).await.unwrap();
    assert!(written.stdout().contains("OK"));

    // Not all files, and files that are not certificates or do not fit each other.
    let wanted = certify(&at, &authority);
    let files = ["tls.crt", "tls.key", "ca.crt"].map(|it| {
        let path = at("tls").join(it);
        let content = fs::read(&path).unwrap();
        (path, content)
    });
    let half = files.each_ref().map(|(_, content)| &content[..content.len() / 2]);
    let other = Authority::new("other").server(&["localhost"]).key;
    let wrong = [
        (0, &b""[..]),
        (0, half[0]),
        (1, b""),
        (1, half[1]),
        (1, other.as_bytes()),
        (2, b""),
        (2, half[2]),
    ];
    for (number, content) in wrong {
        let (path, right) = &files[number];
        fs::write(path, content).unwrap();
        let _ = run(script("ready.sh")).await.expect_err("clients cannot connect");
        assert!(is_closed(ports[1]).await, "{}", path.display());
        fs::write(path, right).unwrap();
    }
    run(script("ready.sh")).await.unwrap();
    assert_eq!(served(ports[1], &authority).await, wanted);
    assert!(is_closed(ports[0]).await);

    // Redis keeps what it has, also while the Secret is spoilt or gone.
    for (number, content) in wrong {
        let (path, right) = &files[number];
        fs::write(path, content).unwrap();
        run(script("ready.sh")).await.unwrap();
        assert_eq!(served(ports[1], &authority).await, wanted, "{}", path.display());
        fs::write(path, right).unwrap();
    }
    remove();
    run(script("ready.sh")).await.unwrap();
    assert_eq!(served(ports[1], &authority).await, wanted);
    redis.kill();

    // Without the Secret, the next start has the data and waits for it.
    let redis = start().await;
    let read = run(script("cli.sh").args(["get", "used"])).await.unwrap();
    assert!(read.stdout().contains("this-code"), "{}", read.output());
    // With one that has ended, Redis runs, and clients say why they do not use it.
    let ended = Authority::until("ended", UnixMillis::from_seconds(1_700_000_000));
    certify(&at, &ended);
    run(script("ready.sh")).await.unwrap();
    let renewed = certify(&at, &authority);
    run(script("ready.sh")).await.unwrap();
    assert_eq!(served(ports[1], &authority).await, renewed);
    redis.kill();

    // With the Secret, no controller is needed.
    let redis = script("start.sh").named("redis of the chart, with the Secret").start();
    wait_ready(&redis, &script).await;
    assert_eq!(served(ports[1], &authority).await, renewed);
}

/// Redis has data of a release without TLS, and a service that does not use TLS yet.
#[tokio::test]
async fn redis_with_data_accepts_plain_connections_until_none_was_seen_for_an_hour() {
    let folder = scratch::folder("chart-redis-change");
    let (ports, authority) = ([(); 2].map(|()| ports::free_port()), Authority::new("redis"));
    lay_out(folder.path(), ports, &redis_files("redis.tls.enabled=false").await);
    let at = |name: &str| folder.path().join(name);
    fs::write(at("password/password"), "secret").unwrap();
    let script = |name: &str| Launch::new("sh").arg(at("config").join(name));
    let start = async || {
        let redis = script("start.sh").named("redis of the chart, changing").start();
        wait_ready(&redis, &script).await;
        redis
    };
    let switch_to = async |values| configure(folder.path(), ports, &redis_files(values).await);
    let redis = start().await;
    let written = run(script("cli.sh").args(["set", "used", "this-code"])).await.unwrap();
    assert!(written.stdout().contains("OK"));
    redis.kill();

    // TLS is switched on, and there is no controller that makes the certificate.
    switch_to("").await;
    let redis = start().await;
    let url = format!("redis://:secret@127.0.0.1:{}", ports[0]);
    let service = redis::Client::open(url).unwrap();
    let mut service = service.get_multiplexed_async_connection().await.unwrap();
    let used: String = redis::cmd("GET").arg("used").query_async(&mut service).await.unwrap();
    assert_eq!(used, "this-code");
    // A look with the given times in seconds since the last look, and since the last connection.
    let look = async |looked: i64, seen: i64| {
        let now = i64::try_from(Clock::System.now().seconds()).unwrap();
        fs::write(at("run/plain"), format!("{} {}\n", now - looked, now - seen)).unwrap();
        run(script("ready.sh")).await.unwrap();
        accepts_plain(ports[0]).await
    };
    assert!(look(2, 7200).await, "there is no port with TLS");
    certify(&at, &authority);
    assert!(look(2, 7200).await, "a service does not use TLS yet");
    let _ = served(ports[1], &authority).await;
    drop(service);
    eventually(BOUND, "the connections without TLS to end", async || {
        let list = run(script("cli.sh").args(["client", "list"])).await.unwrap().stdout();
        !list.contains(&format!("laddr=127.0.0.1:{}", ports[0]))
    })
    .await;
    assert!(look(2, 3500).await, "a service may be about to connect");
    assert!(look(90, 7200).await, "connections of 90 seconds may have been missed");
    assert!(look(-5, 7200).await, "the clock was set back");
    // The kernel may still show the connection of the last look.
    eventually(BOUND, "Redis to close the port", async || !look(2, 3600).await).await;
    assert!(!at("run/plain").exists());
    // Also after a restart.
    redis.kill();
    let redis = start().await;
    assert!(!accepts_plain(ports[0]).await);
    redis.kill();

    // It is switched off again: services still use it, and change back.
    switch_to("redis.tls.enabled=false").await;
    let redis = start().await;
    assert!(accepts_plain(ports[0]).await);
    let _ = served(ports[1], &authority).await;
    redis.kill();
    switch_to("").await;
    let _redis = start().await;
    assert!(accepts_plain(ports[0]).await);
}

/// Writes another certificate into the mounted Secret.
fn certify(at: &impl Fn(&str) -> PathBuf, authority: &Authority) -> CertificateDer<'static> {
    let leaf = authority.server(&["localhost"]);
    fs::write(at("tls/ca.crt"), authority.pem()).unwrap();
    fs::write(at("tls/tls.key"), leaf.key).unwrap();
    fs::write(at("tls/tls.crt"), &leaf.certificate).unwrap();
    CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()
}

async fn wait_ready(redis: &Process, script: &impl Fn(&str) -> Launch) {
    eventually(BOUND, "Redis to answer the probe", async || {
        redis.assert_running();
        run(script("ready.sh")).await.map(|_| ())
    })
    .await;
}

async fn accepts_plain(port: u16) -> bool {
    let cli = Launch::new(tools::find("redis-cli")).env("REDISCLI_AUTH", "secret");
    let cli = cli.args(["-h", "127.0.0.1", "-p", &port.to_string(), "ping"]);
    run(cli).await.is_ok_and(|it| it.stdout().contains("PONG"))
}

/// The certificate with which a server of this authority answers.
async fn served(port: u16, authority: &Authority) -> CertificateDer<'static> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// What the chart's first version had in place of controller and admission: one Deployment, behind
/// the same Service.
const ONE_DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: earlier, namespace: earlier}
spec:
  replicas: 2
  selector:
    matchLabels: {app.kubernetes.io/name: twofactor-operator, app.kubernetes.io/instance: earlier}
  template:
    metadata:
      labels: {app.kubernetes.io/name: twofactor-operator, app.kubernetes.io/instance: earlier}
    spec:
      serviceAccountName: earlier
      containers:
        - {name: operator, image: any, args: [run], ports: [{name: webhook, containerPort: 9443}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: earlier, namespace: earlier}
---
apiVersion: v1
kind: Service
metadata: {name: earlier, namespace: earlier}
spec:
  selector: {app.kubernetes.io/name: twofactor-operator, app.kubernetes.io/instance: earlier}
  ports: [{name: webhook, port: 443, targetPort: webhook}]
";

/// The webhook's Service must find the pods of both versions all the time, or labelled pods are
/// refused.
#[tokio::test]
async fn an_upgrade_from_one_deployment_and_its_rollback_keep_the_webhooks_pods() {
    let (server, _webhooks) = tokio::join!(server(), WEBHOOKS.lock());
    let kubeconfig = server.kubeconfig_path().display().to_string();
    let in_earlier = async |args: &[&str]| {
        let common = ["--kubeconfig", &kubeconfig, "--namespace", "earlier"];
        helm(&[&common[..], args].concat()).await
    };
    let _ = server.kubectl(&["create", "namespace", "earlier"]);
    let folder = scratch::folder("chart-earlier");
    fs::create_dir(folder.path().join("templates")).unwrap();
    let chart_file = "apiVersion: v2\nname: fountainai-2fa\nversion: 0.0.1\n";
    fs::write(folder.path().join("Chart.yaml"), chart_file).unwrap();
    fs::write(folder.path().join("templates/all.yaml"), ONE_DEPLOYMENT).unwrap();
    let _ = in_earlier(&["install", "earlier", folder.path().to_str().unwrap()]).await;
    let object = |kind: &str| get(server, &[kind, "earlier", "--namespace", "earlier"]);
    let (deployment, service) = (object("deployment"), object("service"));

    let values = "name=earlier,crds.enabled=false,redis.enabled=false,redis.existing.url=redis://a";
    let _ = in_earlier(&["upgrade", "earlier", &chart(), "--set", values]).await;
    let (upgraded, labels) = (object("deployment"), "/spec/template/metadata/labels");
    assert_eq!(upgraded["metadata"]["uid"], deployment["metadata"]["uid"]);
    assert_eq!(upgraded["spec"]["template"]["spec"]["containers"][0]["args"], json!(["admission"]));
    let strategy = &upgraded["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(strategy["maxUnavailable"], 0, "an old pod ends after its successor is ready");
    let selector = service["spec"]["selector"].as_object().unwrap();
    assert_eq!(object("service")["spec"]["selector"].as_object(), Some(selector));
    for (name, label) in selector {
        assert_eq!(upgraded.pointer(labels).unwrap()[name], *label, "of the pods of admission");
    }
    let controller = get(server, &["deployment", "earlier-controller", "--namespace", "earlier"]);
    let labels = controller.pointer(labels).unwrap();
    assert!(selector.iter().any(|(name, label)| labels[name] != *label), "not of the controller");

    let _ = in_earlier(&["rollback", "earlier", "1"]).await;
    let back = object("deployment");
    assert_eq!(back["metadata"]["uid"], deployment["metadata"]["uid"]);
    assert_eq!(back["spec"]["template"]["spec"]["containers"][0]["args"], json!(["run"]));
    let left = ["get", "deployments", "--namespace", "earlier", "--output=name"];
    assert_eq!(server.kubectl(&left).trim(), "deployment.apps/earlier");
    let _ = in_earlier(&["uninstall", "earlier"]).await;
}

async fn an_upgrade_leaves_alone_what_the_operator_wrote(server: &ApiServer) {
    let bundle = BASE64.encode(&fs::read(server.ca_path()).unwrap());
    let patch =
        json!([{ "op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle }])
            .to_string();
    let manager = "--field-manager=twofactor-operator";
    let _ = server.kubectl(&["patch", WEBHOOK, "--type=json", manager, "--patch", &patch]);
    for replicas in [3, 2] {
        let value = format!("operator.replicas={replicas},admission.replicas={}", replicas + 1);
        let timeout = format!("webhook.timeoutSeconds={}", replicas + 1);
        let _ =
            helm_on(server, &["upgrade", "trial", &chart(), "--set", &value, "--set", &timeout])
                .await;
        for (name, replicas) in
            [("twofactor-operator-controller", replicas), ("twofactor-operator", replicas + 1)]
        {
            let deployment = get(server, &["deployment", name, "--namespace", NAMESPACE]);
            assert_eq!(deployment["spec"]["replicas"], replicas);
        }
        let webhook = &get(server, &[WEBHOOK])["webhooks"][0];
        assert_eq!(webhook["timeoutSeconds"], replicas + 1);
        assert_eq!(webhook["clientConfig"]["caBundle"].as_str(), Some(bundle.as_str()));
    }
}

async fn without_the_release_users_stay_and_pods_start(server: &ApiServer) {
    let folder = scratch::folder("chart-user");
    let file = folder.path().join("user.yaml");
    let user = json!({
        "apiVersion": "twofactor.fountainai.io/v1alpha1",
        "kind": "TwoFactorUser",
        "metadata": { "name": "alice", "namespace": "default" },
        "spec": { "deliveryMethod": "app" },
    });
    fs::write(&file, user.to_string()).unwrap();
    let _ = server.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    let uid = get(server, &["twofactoruser", "alice"])["metadata"]["uid"].clone();
    // Created by the operator, so not part of the release.
    let secret = [
        "create",
        "secret",
        "generic",
        "twofactor-master-key",
        "--from-literal=key=x",
        "--namespace",
    ];
    let _ = server.kubectl(&[&secret[..], &[NAMESPACE]].concat());

    let _ = helm_on(server, &["uninstall", "trial"]).await;
    let left = server.kubectl(&[
        "get",
        "all,configmaps,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies",
        "--namespace",
        NAMESPACE,
        "--output=name",
    ]);
    let left: Vec<&str> =
        left.lines().filter(|name| !name.ends_with("/kube-root-ca.crt")).collect();
    assert_eq!(left, ["secret/twofactor-master-key"]);
    let cluster_wide = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,\
                        validatingadmissionpolicies,validatingadmissionpolicybindings";
    let left = server.kubectl(&[
        "get",
        cluster_wide,
        "--selector=app.kubernetes.io/part-of=fountainai-2fa",
        "--output=name",
    ]);
    assert_eq!(left, "");
    assert_eq!(get(server, &["twofactoruser", "alice"])["metadata"]["uid"], uid);
    eventually(BOUND, "a labelled pod to start", async || {
        let label = "--labels=twofactor.fountainai.io/inject=true";
        server.try_kubectl(&["run", "any", "--image=any", "--dry-run=server", label])
    })
    .await;

    // Installs the release again, with all objects that stayed.
    let _ = helm_on(server, &["install", "trial", &chart()]).await;
    assert_eq!(get(server, &["twofactoruser", "alice"])["metadata"]["uid"], uid);
    let _ = helm_on(server, &["uninstall", "trial"]).await;
}

#[tokio::test]
async fn two_releases_share_the_crds_and_no_other_object() {
    let server = ApiServer::start().await;
    let kubeconfig = server.kubeconfig_path().display().to_string();
    let chart = chart();
    for namespace in ["first-people", "second-people", "kms"] {
        let _ = server.kubectl(&["create", "namespace", namespace]);
    }
    let install = async |name: &str, more: &[&str]| {
        let users = format!("operator.namespaces={{{name}-people}}");
        let set = format!("name={name},{users},operator.serviceNamespaces={{kms}}");
        let install = ["install", name, &chart, "--kubeconfig", &kubeconfig, "--set", &set];
        let namespace = format!("{name}-system");
        let namespaced = ["--namespace", namespace.as_str(), "--create-namespace"];
        try_helm(&[&install[..], &namespaced[..], more].concat()).await
    };
    install("first", &[]).await.unwrap();
    let refused = install("second", &[]).await.unwrap_err();
    assert!(refused.contains("invalid ownership metadata"), "{refused}");
    let _ = try_helm(&[
        "uninstall",
        "second",
        "--kubeconfig",
        &kubeconfig,
        "--namespace",
        "second-system",
    ])
    .await;
    let kinds = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,crds,\
        validatingadmissionpolicies,validatingadmissionpolicybindings";
    let objects = || {
        let list = get(&server, &[kinds, "--selector", "app.kubernetes.io/part-of=fountainai-2fa"]);
        let name = |it: &Value| (it["kind"].to_string(), it["metadata"]["name"].to_string());
        list["items"].as_array().unwrap().iter().map(name).collect::<BTreeSet<_>>()
    };
    let of_first = objects();
    assert!(of_first.len() > 6, "{of_first:?}");
    install("second", &["--set", "crds.enabled=false"]).await.unwrap();
    let of_second: BTreeSet<_> = objects().difference(&of_first).cloned().collect();
    assert_eq!(of_second.len() + 2, of_first.len(), "{of_first:?} {of_second:?}");
    assert!(of_second.iter().all(|(_, name)| name.contains("second")), "{of_second:?}");
    helm(&["uninstall", "second", "--kubeconfig", &kubeconfig, "--namespace", "second-system"])
        .await;
    assert_eq!(objects(), of_first, "the second release has taken an object of the first with it");
}

#[tokio::test]
async fn helm_3_and_4_upgrade_the_previous_chart_and_roll_back() {
    let previous = previous::source().join("charts/fountainai-2fa").display().to_string();
    for program in ["helm3", "helm"] {
        let server = ApiServer::start().await;
        let kubeconfig = server.kubeconfig_path().display().to_string();
        let helm = async |args: &[&str]| {
            let common = ["--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
            let launch = Launch::new(tools::find(program)).isolated().args(args).args(common);
            run(launch).await.unwrap_or_else(|error| panic!("{program} {args:?} failed: {error}"));
        };
        let deployments = || {
            let list = get(&server, &["deployments", "--namespace", NAMESPACE]);
            let names = list["items"].as_array().unwrap().iter();
            let name = |it: &Value| it["metadata"]["name"].as_str().unwrap().to_owned();
            names.map(name).collect::<Vec<_>>()
        };
        let has_new_fields = || {
            let crd = get(&server, &["crd", "twofactorusers.twofactor.fountainai.io"]);
            crd.to_string().contains("locale")
        };
        let of_previous = || {
            assert_eq!(deployments(), ["twofactor-operator"], "{program}");
            assert!(!has_new_fields(), "{program}");
        };
        let of_present = || {
            let both = ["twofactor-operator", "twofactor-operator-controller"];
            assert_eq!(deployments(), both, "{program}");
            assert!(has_new_fields(), "{program}");
        };
        helm(&["install", "twofactor", &previous, "--create-namespace"]).await;
        of_previous();
        helm(&["upgrade", "twofactor", &chart()]).await;
        of_present();
        helm(&["rollback", "twofactor", "1"]).await;
        of_previous();
        helm(&["upgrade", "twofactor", &chart()]).await;
        of_present();
        helm(&["uninstall", "twofactor"]).await;
        assert_eq!(deployments(), [""; 0], "{program}");
        assert!(has_new_fields(), "{program} removed the CRDs");
    }
}
