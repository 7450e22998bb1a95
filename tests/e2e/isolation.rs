//! Tests that the app beside the sidecar can read neither seed nor Redis password, realm key or
//! provider's credentials. The app is root in its container and has all default capabilities.

use std::collections::BTreeSet;
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::manifests::{self, APP, SIDECAR};
use crate::release;
use crate::scene::{Scene, decoded, random_text};

/// Users with a provider that needs a password, a service that may verify them, and a neighbour of
/// that service.
struct Stage {
    people: String,
    services: String,
}

const SERVICE: &str = "service";
const NEIGHBOUR: &str = "neighbour";

fn stage(scene: &Scene<'_>) -> Stage {
    let stage = Stage { people: scene.namespace("people"), services: scene.namespace("services") };
    let Stage { people, services } = &stage;
    let provider = json!({
        "SMTP_SERVER": "mail.example.test",
        "SMTP_USERNAME": "otp",
        "SMTP_PASSWORD": format!("provider-{}", random_text()),
        "SMTP_FROM_EMAIL": "otp@example.test",
    });
    scene.kubectl().apply(&manifests::secret(people, "providers", &provider));
    scene.users(
        people,
        &[
            ("alice", json!({ "email": "alice@example.test" })),
            ("carol", json!({ "deliveryMethod": "app" })),
        ],
    );
    scene.realm(people, &[services], Some("providers"));
    let mut service = manifests::client_with_sidecar(services, SERVICE, people);
    service["spec"].as_object_mut().expect("a spec").remove("securityContext");
    let container = &mut service["spec"]["containers"][0];
    container["securityContext"] = json!({ "runAsUser": 0 });
    scene.start(&service);
    scene.start(&manifests::client_with_sidecar(services, NEIGHBOUR, people));
    stage
}

/// All values that the app must not read, each with its description.
fn secrets(scene: &Scene<'_>, stage: &Stage) -> Vec<(String, String)> {
    let mut secrets = Vec::new();
    // Short or multi-line texts would be found by accident.
    let mut add = |what: &str, value: String| {
        for line in value.lines().map(str::trim).filter(|line| line.len() >= 12) {
            secrets.push((format!("{what}, as base64"), BASE64.encode(line.as_bytes())));
            secrets.push((what.to_owned(), line.to_owned()));
        }
    };
    for user in ["alice", "carol"] {
        add(&format!("{user}'s seed"), scene.seed(&stage.people, user));
    }
    add("the provider's password", scene.secret(&stage.people, "providers", "SMTP_PASSWORD"));
    let credentials = format!("twofactor-{}", stage.people);
    add(
        "the realm key",
        scene.secret(&stage.services, &credentials, "realm-key").trim().to_owned(),
    );
    let url = scene.secret(&stage.services, &credentials, "redis-url");
    add(
        "the realm's Redis password",
        password_of(&url).expect("a password in redis-url").to_owned(),
    );
    for name in ["twofactor-master-key", "twofactor-redis"] {
        // Without the chart's own Redis only one of them exists.
        let Ok(secret) =
            scene.kubectl().try_get(&["secret", name, "--namespace", release::NAMESPACE])
        else {
            continue;
        };
        for (key, value) in secret["data"].as_object().into_iter().flatten() {
            if let Some(text) = decoded(value) {
                add(&format!("{key} of {name}"), text.trim().to_owned());
            }
        }
    }
    secrets
}

/// `redis://user:password@host:6379/0`
fn password_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let (user, _) = rest.rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password)
}

/// Prints each file that contains one of the lines of its input. The lines are never in a command
/// line or an environment.
const SEARCH: &str = r#"
needles=$(cat)
for folder in /*; do
  case $folder in /proc | /sys | /dev) continue ;; esac
  grep -rlsF -f <(printf '%s\n' "$needles") "$folder"
done
for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/mountinfo; do
  if tr '\0' '\n' 2>/dev/null <"$file" | grep -qF -f <(printf '%s\n' "$needles"); then echo "$file"; fi
done
true
"#;

pub(crate) fn the_app_finds_no_secret_in_its_files_environment_or_processes(scene: &Scene<'_>) {
    let stage = stage(scene);
    let services = &stage.services;
    let search = |needle: &str| {
        let said =
            scene.exec_with(services, SERVICE, &["bash", "-c", SEARCH], &format!("{needle}\n"));
        let found = said.into_result().expect("the search to come to its end");
        found.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };

    // Checks that the search finds a planted text, because otherwise an empty result would prove
    // nothing.
    let planted = random_text() + &random_text();
    let plant = "mkdir -p /opt/deep && cat >/opt/deep/file && PLANTED=$(cat /opt/deep/file) && export PLANTED && (sleep 600 >/dev/null 2>&1 </dev/null &)";
    assert!(scene.exec_with(services, SERVICE, &["bash", "-c", plant], &planted).success);
    let found = search(&planted);
    assert!(found.contains("/opt/deep/file"), "the search missed a file: {found:?}");
    assert!(
        found.iter().any(|path| path.ends_with("/environ")),
        "the search missed an environment: {found:?}"
    );

    let secrets = secrets(scene, &stage);
    let all: Vec<_> = secrets.iter().map(|(_, secret)| secret.as_str()).collect();
    if !search(&all.join("\n")).is_empty() {
        let of_each = secrets.iter().map(|(what, secret)| (what, search(secret)));
        let found: Vec<_> = of_each.filter(|(_, found)| !found.is_empty()).collect();
        panic!("the app can read {found:?}");
    }

    let processes =
        scene.exec(services, SERVICE, &["ps", "-e", "-o", "args"]).into_result().expect("ps");
    assert!(!processes.contains(SIDECAR), "the app sees the sidecar's process:\n{processes}");
    let mounts = scene
        .exec(services, SERVICE, &["cat", "/proc/self/mountinfo"])
        .into_result()
        .expect("the mounts");
    // The fifth field is the mount point; the names of the node's disks do not matter.
    let ours = mounts
        .lines()
        .filter(|mount| mount.split(' ').nth(4).is_some_and(|place| place.contains("twofactor")));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new(), "something of ours is mounted");
    let folder = scene.exec(services, SERVICE, &["ls", "/var/run/secrets/twofactor"]);
    assert!(!folder.success, "the credentials are there: {folder}");

    // A reader of pods without access to Secrets finds none in the pod either.
    let pod = scene.kubectl().get(&["pod", SERVICE, "--namespace", services]);
    for (what, secret) in &secrets {
        assert!(!pod.to_string().contains(secret), "the pod itself contains {what}");
    }
    let sidecar = container(&pod, "initContainers", SIDECAR);
    assert_eq!(sidecar["envFrom"], Value::Null, "{sidecar}");
    assert!(!sidecar["env"].to_string().contains("secretKeyRef"), "{sidecar}");
    let app = container(&pod, "containers", APP);
    assert!(!app.to_string().contains("twofactor-credentials"), "{app}");
}

fn container<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let containers = pod["spec"][list].as_array().into_iter().flatten();
    containers
        .into_iter()
        .find(|container| container["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {pod}"))
}

pub(crate) fn the_apps_service_account_may_read_nothing_of_ours(scene: &Scene<'_>) {
    let stage = stage(scene);
    let Stage { people, services } = &stage;
    let account = format!("system:serviceaccount:{services}:default");
    for (verb, what, namespace) in [
        ("get", "secrets", services.as_str()),
        ("list", "secrets", services),
        ("watch", "secrets", services),
        ("get", "secrets", people),
        ("get", "secrets", release::NAMESPACE),
        ("get", "twofactorusers.twofactor.fountainai.io", people),
        ("patch", "twofactorrealms.twofactor.fountainai.io", people),
        ("create", "pods", services),
        ("create", "pods/exec", services),
        ("patch", "pods/ephemeralcontainers", services),
        ("create", "serviceaccounts/token", release::NAMESPACE),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", services),
    ] {
        // After the slash kubectl expects a name, not a part of the resource.
        let (resource, part) = what.split_once('/').unwrap_or((what, ""));
        let part = format!("--subresource={part}");
        let args =
            ["auth", "can-i", verb, resource, &part, "--as", &account, "--namespace", namespace];
        let said = scene.kubectl().say(&args, "");
        assert_eq!(said.stdout.trim(), "no", "{account} may {verb} {what} in {namespace}: {said}");
    }

    // The same with the app's real token.
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    for path in [
        format!("/api/v1/namespaces/{services}/secrets"),
        format!("/api/v1/namespaces/{services}/secrets/twofactor-{people}"),
        format!("/api/v1/namespaces/{people}/secrets/alice-totp"),
        format!("/apis/twofactor.fountainai.io/v1alpha1/namespaces/{people}/twofactorusers"),
    ] {
        let script = format!(
            "curl --silent --show-error --max-time 10 --output /dev/null --write-out '%{{http_code}}' --cacert {token}/ca.crt \
             --header \"Authorization: Bearer $(cat {token}/token)\" \"https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT{path}\""
        );
        let said = scene.exec(services, SERVICE, &["bash", "-c", &script]);
        assert_eq!(said.stdout.trim(), "403", "{path} with the app's token: {said}");
    }
}

pub(crate) fn the_network_gives_the_app_nothing_but_its_own_sidecar(scene: &Scene<'_>) {
    let stage = stage(scene);
    let Stage { people, services } = &stage;
    let neighbour = scene.kubectl().get(&["pod", NEIGHBOUR, "--namespace", services]);
    let addresses =
        neighbour["status"]["podIPs"].as_array().expect("addresses of the neighbour").clone();
    let url = |address: &str, port: u16| {
        if address.contains(':') {
            format!("http://[{address}]:{port}")
        } else {
            format!("http://{address}:{port}")
        }
    };
    let known = secrets(scene, &stage);
    for address in addresses.iter().filter_map(|entry| entry["ip"].as_str()) {
        let api = scene.exec(
            services,
            SERVICE,
            &["curl", "--silent", "--show-error", "--max-time", "5", &url(address, 8004)],
        );
        assert!(api.stderr.contains("(7)"), "the neighbour's API is not refused: {api}");
        // Health and metrics are reachable for Prometheus, and contain no secret.
        let metrics = url(address, 18004) + "/metrics";
        let said = scene.exec(
            services,
            SERVICE,
            &["curl", "--silent", "--fail", "--max-time", "5", &metrics],
        );
        let text = said.into_result().expect("the neighbour's metrics");
        assert!(text.contains("twofactor_build_info"), "{text}");
        for (what, secret) in &known {
            assert!(!text.contains(secret), "the metrics contain {what}");
        }
        assert!(!text.contains("alice"), "the metrics contain a name: {text}");
    }

    // Redis itself isolates services, too.
    let isolated = ["twofactorrealm", "default", "--namespace", people, "--for=condition=Isolated"];
    scene.kubectl().wait(Duration::from_secs(30), &isolated);
    let target = scene.secret(services, &format!("twofactor-{people}"), "redis-url");
    let place = target.rsplit_once('@').map_or(target.as_str(), |(_, place)| place);
    let place = place.split('/').next().unwrap_or(place);
    let (host, port) = place.rsplit_once(':').unwrap_or((place, "6379"));
    for question in
        ["KEYS *", "CONFIG GET requirepass", "ACL LIST", "AUTH default wrong", "AUTH wrong"]
    {
        let script = format!("printf '{question}\\r\\nQUIT\\r\\n' | nc -w 5 {host} {port}");
        let said = scene.exec(services, SERVICE, &["bash", "-c", &script]);
        // A network policy may refuse the connection; Redis itself refuses a client without a
        // password.
        let first = said.stdout.lines().next().unwrap_or_default();
        let refused = first.starts_with("-NOAUTH")
            || first.starts_with("-WRONGPASS")
            || first.starts_with("-ERR AUTH");
        assert!(
            refused || first.is_empty(),
            "Redis answers {question:?} without a password: {said}"
        );
    }
}
