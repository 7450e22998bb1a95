//! Makes `docs/reference/metrics.md` from the metrics that the programs register, and compares.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use twofactor_operator::testing::{admission_metrics, controller_metrics};
use twofactor_server::metrics::Metric;
use twofactor_sidecar::testing::metrics as sidecar_metrics;

/// Set by the command that the page names, to write the page.
const WRITE: &str = "TWOFACTOR_WRITE_PAGES";

const INTRODUCTION: &str = "\
# Metrics

<!-- Generated; do not edit. To update it:
TWOFACTOR_WRITE_PAGES=1 cargo test -p twofactor-tests --test suite docs::metrics -->

Each program serves metrics for Prometheus at `/metrics` of its admin port. No label holds an
address or any other value that a caller chooses, and only `twofactor_users_repaired_total` names
objects. The namespace of a sidecar, which is the caller, is a label that Prometheus adds.

The chart's `metrics.serviceMonitor.enabled` and `metrics.podMonitor.enabled` create monitors for
the Prometheus operator, `metrics.rules.enabled` [alerts](../operations/alerts.md), and
`metrics.dashboards.enabled` [dashboards](../operations/dashboards.md).

The outcomes of decisions are those of [Outcomes](outcomes.md), those of deliveries are in
[Delivery](../guides/delivery.md#when-a-delivery-is-refused), the settings of Redis in
[Redis](../operations/redis.md#settings), and the reasons of conditions and of admission in
[Troubleshooting](../operations/troubleshooting.md). The names of controller-runtime let stock
dashboards work.
";

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (program, introduction, metrics) in [
        ("Sidecar", "", sidecar_metrics()),
        (
            "Controller",
            "Every replica shows these; what only the leader knows is 0 at the others.\n",
            controller_metrics(),
        ),
        ("Admission", "", admission_metrics()),
    ] {
        let _ = write!(page, "\n## {program}\n\n{introduction}");
        if !introduction.is_empty() {
            page.push('\n');
        }
        page.push_str("| metric | kind | labels | what it is |\n| --- | --- | --- | --- |\n");
        for Metric { name, kind, labels, help } in metrics {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let (kind, labels) = (kind.name(), labels.join(", "));
            let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
        }
    }
    page
}

#[test]
fn the_page_of_the_metrics_is_made_from_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let page = page();
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    assert!(
        written == page,
        "docs/reference/metrics.md is out of date; its first lines say how to update it"
    );
}

#[test]
fn every_metric_has_a_sentence_and_a_name_by_the_conventions() {
    for metric in [sidecar_metrics(), controller_metrics(), admission_metrics()].concat() {
        let Metric { name, kind, help, .. } = metric;
        assert!(help.ends_with('.') && help.len() < 300 && !help.contains('|'), "{name}: {help}");
        assert_eq!(kind.name() == "counter", name.ends_with("_total"), "{name}");
    }
}
