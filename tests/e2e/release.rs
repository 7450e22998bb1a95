//! Installs, tests and uninstalls the release of the chart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use twofactor_tests::kubernetes::{Said, helm, helm_unless};
use twofactor_tests::previous;

/// The release's name.
pub(crate) const NAME: &str = "twofactor";
/// The namespace of the release.
pub(crate) const NAMESPACE: &str = "twofactor-system";
/// The chart's name of the Deployment of the controller.
pub(crate) const CONTROLLER: &str = "deployment/twofactor-operator-controller";
/// Selects the controller's pods.
pub(crate) const CONTROLLER_LABEL: &str = "app.kubernetes.io/name=twofactor-controller";
/// The chart's name of the Deployment of admission.
pub(crate) const ADMISSION: &str = "deployment/twofactor-operator";
/// Selects the pods of admission.
pub(crate) const ADMISSION_LABEL: &str = "app.kubernetes.io/name=twofactor-operator";
/// Selects the pod of the chart's own Redis.
pub(crate) const REDIS_LABEL: &str = "app.kubernetes.io/name=twofactor-redis";
/// The custom resource definitions.
pub(crate) const CRDS: [&str; 2] =
    ["twofactorusers.twofactor.fountainai.io", "twofactorrealms.twofactor.fountainai.io"];

/// Timeout for an installation, an upgrade or a rollback.
pub(crate) const BOUND: Duration = Duration::from_secs(330);

/// The top of the checkout.
pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout")
}

/// Installs the release, or upgrades it to this checkout's chart, and returns when it is ready.
/// `TWOFACTOR_HELM_ARGS` may add arguments, separated by spaces, such as `--set
/// image.registry=registry.example`.
pub(crate) fn install(values: &[&str]) {
    let chart = checkout().join("charts/fountainai-2fa");
    let more = std::env::var("TWOFACTOR_HELM_ARGS").unwrap_or_default();
    let mut args = vec!["upgrade", "--install", NAME, chart.to_str().expect("a path in UTF-8")];
    args.extend(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "5m"]);
    // Values of an existing release stay set.
    args.push("--reset-then-reuse-values");
    args.extend(more.split_whitespace());
    for value in values {
        args.extend(["--set", value]);
    }
    let said = helm(BOUND, &args);
    assert!(said.success, "helm {} failed: {said}", args.join(" "));
}

/// A chart, and the values with which a test installs it.
pub(crate) struct Chart {
    folder: PathBuf,
    values: Vec<String>,
}

impl Chart {
    /// The chart of this checkout.
    pub(crate) fn present() -> Self {
        Self { folder: checkout().join("charts/fountainai-2fa"), values: Vec::new() }
    }

    /// The chart of the previous release, with the images that the node has of it.
    pub(crate) fn previous() -> Self {
        let values = ["operator.image.tag=previous", "sidecar.image.tag=previous"];
        let folder = previous::source().join("charts/fountainai-2fa");
        Self { folder, values: values.map(str::to_owned).into() }
    }

    /// With a Redis that is not the chart's own.
    pub(crate) fn with_redis(mut self, url: &str) -> Self {
        self.values.push("redis.enabled=false".to_owned());
        self.values.push(format!("redis.existing.url={url}"));
        self
    }

    /// Installs the chart, or upgrades the release to it, with no other values than these.
    pub(crate) fn upgrade(&self) -> Said {
        self.upgrade_unless(|| false)
    }

    /// [`Self::upgrade`], but kills helm as soon as `stop` returns `true`.
    pub(crate) fn upgrade_unless(&self, stop: impl FnMut() -> bool) -> Said {
        let chart = self.folder.to_str().expect("a path in UTF-8");
        let mut args = vec!["upgrade", "--install", NAME, chart, "--reset-values"];
        args.extend(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "5m"]);
        for value in &self.values {
            args.extend(["--set", value]);
        }
        helm_unless(BOUND, &args, stop)
    }
}

/// Number of the release's last revision that was deployed.
pub(crate) fn deployed_revision() -> String {
    let said = helm(BOUND, &["status", NAME, "--namespace", NAMESPACE, "--output", "json"]);
    let said = said.into_result().unwrap_or_else(|error| panic!("helm status failed: {error}"));
    let status: Value = serde_json::from_str(&said).expect("JSON of helm");
    status["version"].to_string()
}

/// Returns the release to a revision.
pub(crate) fn roll_back(revision: &str) {
    let args = ["rollback", NAME, revision, "--namespace", NAMESPACE, "--wait", "--timeout", "5m"];
    let said = helm(BOUND, &args);
    assert!(said.success, "helm rollback to {revision} failed: {said}");
}

/// Runs the chart's own tests, and returns helm's output.
pub(crate) fn test() -> Said {
    helm(BOUND, &["test", NAME, "--namespace", NAMESPACE, "--logs"])
}

/// The notes that the chart shows after an installation.
pub(crate) fn notes() -> String {
    let said = helm(BOUND, &["get", "notes", NAME, "--namespace", NAMESPACE]);
    said.into_result().unwrap_or_else(|error| panic!("helm get notes failed: {error}"))
}

/// Whether the release is installed.
pub(crate) fn is_installed() -> bool {
    helm(BOUND, &["status", NAME, "--namespace", NAMESPACE]).success
}

/// Uninstalls the release, and returns helm's output.
pub(crate) fn uninstall() -> String {
    let said =
        helm(BOUND, &["uninstall", NAME, "--namespace", NAMESPACE, "--wait", "--timeout", "3m"]);
    assert!(said.success, "helm uninstall failed: {said}");
    said.to_string()
}
