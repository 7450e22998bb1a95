//! Installs, tests and uninstalls the release of the chart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use twofactor_tests::kubernetes::{Said, helm};

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

const BOUND: Duration = Duration::from_secs(330);

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
