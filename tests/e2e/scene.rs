//! Creates the namespaces, users, services and mail servers of one test, prints the state of the
//! cluster if the test fails, and removes everything afterwards.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::{Value, json};
use twofactor_tests::kubernetes::{Kubectl, Said};
use twofactor_tests::wait::eventually_blocking;

use crate::world::{E2E_LABEL, World};
use crate::{START, manifests, release};

/// Timeout for the operator to publish a user or a realm.
const PUBLISHED: Duration = Duration::from_mins(1);

/// Timeout for the operator to notice a pod.
const NOTICED: Duration = Duration::from_secs(90);

/// A reply of a sidecar.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The status; 0 when no reply came.
    pub(crate) status: u16,
    pub(crate) body: String,
}

pub(crate) struct Scene<'a> {
    pub(crate) world: &'a World,
    namespaces: Mutex<Vec<String>>,
    /// Kind and name of objects without a namespace.
    others: Mutex<Vec<(String, String)>>,
}

impl<'a> Scene<'a> {
    pub(crate) const fn new(world: &'a World) -> Self {
        Self { world, namespaces: Mutex::new(Vec::new()), others: Mutex::new(Vec::new()) }
    }

    pub(crate) const fn kubectl(&self) -> &'a Kubectl {
        &self.world.kubectl
    }

    /// A new namespace whose name begins with `purpose`, with more labels.
    pub(crate) fn namespace_with(&self, purpose: &str, labels: &Value) -> String {
        let name = format!("{purpose}-{}", random_text());
        let mut manifest = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        manifest["metadata"]["labels"][E2E_LABEL] = json!("true");
        self.adopt(&name);
        self.kubectl().apply(&manifest);
        // No pod can be created before it exists.
        eventually_blocking(
            PUBLISHED,
            format_args!("the default service account of {name}"),
            || self.kubectl().try_run(&["get", "serviceaccount", "default", "--namespace", &name]),
        );
        name
    }

    /// A new namespace whose name begins with `purpose`.
    pub(crate) fn namespace(&self, purpose: &str) -> String {
        self.namespace_with(purpose, &json!({}))
    }

    /// A new namespace that enforces the restricted level.
    pub(crate) fn restricted_namespace(&self, purpose: &str) -> String {
        self.namespace_with(purpose, &json!({ "pod-security.kubernetes.io/enforce": "restricted" }))
    }

    /// Registers a namespace that the test creates by other means, so that it is removed with the
    /// others.
    pub(crate) fn adopt(&self, namespace: &str) {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).push(namespace.to_owned());
    }

    /// Creates an object without a namespace, and removes it at the end.
    pub(crate) fn apply_for_all(&self, manifest: &Value) {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let entry = (text(&manifest["kind"]), text(&manifest["metadata"]["name"]));
        self.others.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        self.kubectl().apply(manifest);
    }

    /// Creates users with these names and specs, and waits until they are published.
    pub(crate) fn users(&self, namespace: &str, users: &[(&str, Value)]) {
        for (name, spec) in users {
            self.kubectl().apply(&manifests::user(namespace, name, spec));
        }
        self.kubectl().wait(
            PUBLISHED,
            &["twofactoruser", "--all", "--namespace", namespace, "--for=condition=Ready"],
        );
    }

    /// Creates a realm that allows these namespaces, and waits until it is ready.
    pub(crate) fn realm(&self, namespace: &str, allowed: &[&str], delivery: Option<&str>) {
        self.kubectl().apply(&manifests::realm(namespace, allowed, delivery));
        self.wait_for_realm(namespace);
    }

    pub(crate) fn wait_for_realm(&self, namespace: &str) {
        self.kubectl().wait(
            PUBLISHED,
            &["twofactorrealm", "default", "--namespace", namespace, "--for=condition=Ready"],
        );
    }

    /// Creates a mail server in this namespace, and the Secret `providers` with its address.
    pub(crate) fn mail_server(&self, namespace: &str) {
        let kubectl = self.kubectl();
        kubectl.apply(&manifests::mail_server(namespace));
        kubectl.apply(&manifests::mail_service(namespace));
        let settings = json!({
            "SMTP_SERVER": format!("mail.{namespace}.svc"),
            "SMTP_PORT": "1025",
            "SMTP_SECURITY": "plain",
            "SMTP_FROM_EMAIL": "otp@example.test",
        });
        kubectl.apply(&manifests::secret(namespace, "providers", &settings));
        self.wait_for_pod(namespace, "mail");
    }

    /// The code in the newest mail to this address.
    pub(crate) fn mailed_code(&self, namespace: &str, address: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/services/mail:http/proxy/messages");
        eventually_blocking(PUBLISHED, format_args!("a mail to {address}"), || {
            let mails: Vec<Value> = serde_json::from_str(&self.kubectl().try_raw(&path)?)
                .map_err(|error| format!("the mail server's answer: {error}"))?;
            let is_to = |mail: &&Value| {
                mail["to"].as_array().is_some_and(|to| to.contains(&json!(address)))
            };
            let mail = mails.iter().rfind(is_to).ok_or("none so far")?;
            let text = mail["text"].as_str().unwrap_or_default();
            let code = text
                .split_once("OTP: ")
                .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect());
            code.ok_or_else(|| format!("no code in {text:?}"))
        })
    }

    /// Creates a pod and waits until it is ready.
    pub(crate) fn start(&self, pod: &Value) {
        self.create(pod);
        let text = |name: &str| pod["metadata"][name].as_str().expect("a text").to_owned();
        self.wait_for_pod(&text("namespace"), &text("name"));
    }

    /// Creates an object; panics if it is refused.
    #[track_caller]
    pub(crate) fn create(&self, manifest: &Value) -> Said {
        let said = self.kubectl().create(manifest);
        assert!(said.success, "{manifest} was refused: {said}");
        said
    }

    pub(crate) fn wait_for_pod(&self, namespace: &str, pod: &str) {
        let pod = format!("pod/{pod}");
        self.kubectl().wait(START, &[&pod, "--namespace", namespace, "--for=condition=Ready"]);
    }

    /// Waits until the operator has emitted an Event about this object with this word in its
    /// message.
    pub(crate) fn wait_for_event(&self, namespace: &str, object: &str, word: &str) {
        eventually_blocking(
            NOTICED,
            format_args!("an Event about {object} that says {word}"),
            || {
                let events = self.kubectl().try_get(&["events", "--namespace", namespace])?;
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let is_wanted = |event: &Value| {
                    event["involvedObject"]["name"] == object
                        && text(&event["reportingComponent"]).contains("twofactor")
                        && text(&event["message"]).contains(word)
                };
                let found =
                    events["items"].as_array().is_some_and(|events| events.iter().any(is_wanted));
                if found { Ok(()) } else { Err(events["items"].to_string()) }
            },
        );
    }

    /// Runs a command in the pod's own container, and returns its output.
    pub(crate) fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Said {
        self.exec_with(namespace, pod, command, "")
    }

    /// [`Scene::exec`] with an input.
    pub(crate) fn exec_with(
        &self,
        namespace: &str,
        pod: &str,
        command: &[&str],
        input: &str,
    ) -> Said {
        let target =
            ["exec", "--stdin", "--namespace", namespace, pod, "--container", manifests::APP, "--"];
        self.kubectl().say(&[&target, command].concat(), input)
    }

    /// Sends a request to the sidecar of a pod from the pod's own container.
    pub(crate) fn ask(&self, namespace: &str, pod: &str, path: &str, body: &Value) -> Reply {
        let (url, body) = (format!("http://127.0.0.1:8004{path}"), body.to_string());
        let curl = [
            "curl",
            "--silent",
            "--max-time",
            "20",
            "--write-out",
            "\n%{http_code}",
            "--json",
            &body,
            &url,
        ];
        let said = self.exec(namespace, pod, &curl);
        let reply = said.stdout.rsplit_once('\n').and_then(|(body, status)| {
            Some(Reply { status: status.trim().parse().ok()?, body: body.to_owned() })
        });
        reply.unwrap_or_else(|| panic!("nothing from curl in {namespace}/{pod}: {said}"))
    }

    /// `POST /auth/generate`.
    pub(crate) fn generate(&self, namespace: &str, pod: &str, username: &str) -> Reply {
        self.ask(namespace, pod, "/auth/generate", &json!({ "username": username }))
    }

    /// `POST /auth/verify`.
    pub(crate) fn verify(&self, namespace: &str, pod: &str, username: &str, code: &str) -> Reply {
        self.ask(namespace, pod, "/auth/verify", &json!({ "username": username, "otp_code": code }))
    }

    /// The code that an authenticator app would show now, by the clock of the pod's node.
    pub(crate) fn app_code(&self, namespace: &str, pod: &str, seed: &str) -> String {
        self.app_code_every(30, namespace, pod, seed)
    }

    /// The same for a user whose app shows another code every `period` seconds.
    pub(crate) fn app_code_every(
        &self,
        period: u32,
        namespace: &str,
        pod: &str,
        seed: &str,
    ) -> String {
        let step = format!("--time-step-size={period}");
        let said = self.exec(namespace, pod, &["oathtool", "--totp", "--base32", &step, seed]);
        said.into_result().expect("a code of oathtool").trim().to_owned()
    }

    /// One value of a Secret, as text.
    pub(crate) fn secret(&self, namespace: &str, name: &str, key: &str) -> String {
        let secret = self.kubectl().get(&["secret", name, "--namespace", namespace]);
        decoded(&secret["data"][key])
            .unwrap_or_else(|| panic!("no text {key} in the Secret {namespace}/{name}"))
    }

    /// The seed of a user, in base32.
    pub(crate) fn seed(&self, namespace: &str, user: &str) -> String {
        self.secret(namespace, &format!("{user}-totp"), "secret").trim().to_owned()
    }

    /// Prints the state of everything that this test created.
    pub(crate) fn print_diagnosis(&self) {
        println!("---------- what the cluster says");
        let namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for namespace in namespaces.iter().map(String::as_str).chain([release::NAMESPACE]) {
            let kinds = "pods,jobs,deployments,statefulsets,twofactorusers,twofactorrealms";
            self.print(&["get", kinds, "--output=wide", "--namespace", namespace]);
            self.print(&[
                "get",
                "events",
                "--sort-by=.metadata.creationTimestamp",
                "--namespace",
                namespace,
            ]);
            self.print(&["describe", "twofactorrealms", "--namespace", namespace]);
            let pods =
                self.kubectl().try_run(&["get", "pods", "--output=name", "--namespace", namespace]);
            for pod in pods.unwrap_or_default().lines() {
                if namespace != release::NAMESPACE {
                    self.print(&["describe", pod, "--namespace", namespace]);
                }
                let tail = ["--all-containers", "--prefix", "--tail=40", "--namespace", namespace];
                self.print(&[&["logs", pod], tail.as_slice()].concat());
            }
        }
        println!("----------");
    }

    fn print(&self, args: &[&str]) {
        println!("$ kubectl {}\n{}", args.join(" "), self.kubectl().say(args, ""));
    }

    /// Removes everything that this test created, without waiting until the namespaces are gone.
    pub(crate) fn remove(&self) {
        let namespaces =
            std::mem::take(&mut *self.namespaces.lock().unwrap_or_else(PoisonError::into_inner));
        for namespace in &namespaces {
            let args = ["delete", "namespace", "--ignore-not-found", "--wait=false", namespace];
            println!("{}", self.kubectl().say(&args, "").to_string().trim_end());
        }
        for (kind, name) in
            std::mem::take(&mut *self.others.lock().unwrap_or_else(PoisonError::into_inner))
        {
            let said = self.kubectl().say(&["delete", "--ignore-not-found", &kind, &name], "");
            println!("{}", said.to_string().trim_end());
        }
    }
}

/// A value of a Secret's `data` as text.
pub(crate) fn decoded(value: &Value) -> Option<String> {
    String::from_utf8(BASE64.decode(value.as_str()?.as_bytes()).ok()?).ok()
}

/// Ten characters that no other run has.
pub(crate) fn random_text() -> String {
    let mut bytes = [0; 5];
    SysRng.try_fill_bytes(&mut bytes).expect("random bytes");
    HEXLOWER.encode(&bytes)
}
