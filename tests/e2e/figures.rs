//! Measures what the sidecar and the webhook cost. The figures are printed at the end for
//! comparison; no time is asserted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use twofactor_tests::wait::eventually_blocking;

use crate::START;
use crate::manifests::{self, SIDECAR};
use crate::release::{ADMISSION_LABEL, NAMESPACE};
use crate::scene::Scene;

/// Number of pod starts of each kind.
const RUNS: usize = 5;
/// Number of pods that are admitted.
const PODS: usize = 50;
/// Duration of the measurement of the sidecar's processor time.
const REST: Duration = Duration::from_secs(20);

pub(crate) fn pod_start_with_and_without_the_sidecar(scene: &Scene<'_>) {
    let namespace = scene.namespace("starts");
    scene.users(&namespace, &[("carol", json!({ "deliveryMethod": "app" }))]);
    // The first pods warm up the caches.
    scene.start(&manifests::client(&namespace, "warm-up"));
    scene.start(&manifests::client_with_sidecar(&namespace, "warm-up-with-sidecar", &namespace));
    let (mut without, mut with, mut answering) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        without
            .push(time_to_ready(scene, &manifests::client(&namespace, &format!("without-{run}"))));
        let name = format!("with-{run}");
        with.push(time_to_ready(
            scene,
            &manifests::client_with_sidecar(&namespace, &name, &namespace),
        ));
        answering.extend(time_to_serve(scene, &namespace, &name));
        for name in [format!("without-{run}"), name] {
            scene.kubectl().run(&["delete", "pod", &name, "--namespace", &namespace]);
        }
    }
    let (without, with) = (median(without), median(with));
    let world = scene.world;
    world.figure("pod ready without the sidecar, median", format!("{without:.2} s"));
    world.figure("pod ready with the sidecar, median", format!("{with:.2} s"));
    world.figure("so the sidecar adds (goal: under 2.5 s)", format!("{:.2} s", with - without));
    let shown = if answering.is_empty() {
        "not in its log".to_owned()
    } else {
        format!("{:.1} ms", median(answering) * 1000.0)
    };
    world.figure("sidecar, from its first log line to serving (goal: under 50 ms)", shown);
}

/// Seconds from the request to create the pod until `kubectl` sees it ready.
fn time_to_ready(scene: &Scene<'_>, pod: &Value) -> f64 {
    let begun = Instant::now();
    scene.start(pod);
    begun.elapsed().as_secs_f64()
}

/// Seconds between the sidecar's first log line and the one that says that it serves, by the
/// timestamps of the container runtime.
fn time_to_serve(scene: &Scene<'_>, namespace: &str, pod: &str) -> Option<f64> {
    let args = ["logs", pod, "--container", SIDECAR, "--timestamps", "--namespace", namespace];
    let log = scene.kubectl().run(&args);
    let second_of = |line: &str| seconds_of_the_hour(line.split(' ').next()?);
    let (index, serving) = log.lines().enumerate().find(|(_, line)| line.contains("serving"))?;
    // Without an earlier line there is nothing to compare.
    let first = log.lines().next().filter(|_| index > 0)?;
    Some((second_of(serving)? - second_of(first)?).rem_euclid(3600.0))
}

/// Parses a time such as `2026-11-22T16:59:57.123456789Z`.
fn seconds_of_the_hour(time: &str) -> Option<f64> {
    let (_, time) = time.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':').skip(1);
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(minutes * 60.0 + seconds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn admission_of_fifty_pods(scene: &Scene<'_>) {
    let namespace = scene.namespace("admission");
    let pods = |kind: &str| {
        let pod = |index| {
            manifests::client_with_sidecar(&namespace, &format!("{kind}-{index}"), &namespace)
        };
        json!({ "apiVersion": "v1", "kind": "List", "items": (0..PODS).map(pod).collect::<Vec<_>>() })
    };
    let histograms = || {
        let api_server = scene.kubectl().try_raw("/metrics").expect("the API server's metrics");
        let is_ours =
            |line: &str| line.contains("twofactor") && line.contains("operation=\"CREATE\"");
        let seen = histogram(
            &api_server,
            "apiserver_admission_webhook_admission_duration_seconds",
            is_ours,
        );
        let admission: Vec<_> = admission_metrics(scene)
            .iter()
            .map(|text| histogram(text, "twofactor_admission_seconds", |_| true))
            .collect();
        (seen, admission.into_iter().fold(Vec::new(), sum))
    };
    // Opens connections and fills caches before the measurement.
    let said = scene.kubectl().create_dry(&pods("warm-up"));
    assert!(said.success, "{said}");
    let before = histograms();
    let said = scene.kubectl().create_dry(&pods("counted"));
    assert!(said.success, "{said}");
    let after = histograms();
    for (what, before, after) in [
        ("by admission", before.1, after.1),
        ("by the API server, network included", before.0, after.0),
    ] {
        let counted = difference(&after, &before);
        let (p50, p99) = (quantile(&counted, 0.50), quantile(&counted, 0.99));
        let show = |bound: Option<f64>| {
            bound.map_or("?".to_owned(), |bound| format!("{:.1} ms", bound * 1000.0))
        };
        let total = counted.last().map_or(0.0, |(_, count)| *count);
        let what = format!("admission of {PODS} pods {what} (goal: p99 under 20 ms)");
        scene.world.figure(
            &what,
            format!("p50 {}, p99 {} of {total} (within its bucket)", show(p50), show(p99)),
        );
    }
}

fn admission_metrics(scene: &Scene<'_>) -> Vec<String> {
    let pods =
        scene.kubectl().get(&["pods", "--selector", ADMISSION_LABEL, "--namespace", NAMESPACE]);
    let names = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["metadata"]["name"].as_str());
    let metrics = |name: &str| {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:18005/proxy/metrics");
        scene.kubectl().try_raw(&path).expect("the metrics of admission")
    };
    names.map(metrics).collect()
}

/// Upper bounds and how many were at or below them, summed over all other labels.
type Histogram = Vec<(f64, f64)>;

fn histogram(text: &str, name: &str, is_wanted: impl Fn(&str) -> bool) -> Histogram {
    let prefix = format!("{name}_bucket{{");
    text.lines()
        .filter(|line| line.starts_with(&prefix) && is_wanted(line))
        .filter_map(bucket)
        .fold(Vec::new(), add)
}

fn bucket(line: &str) -> Option<(f64, f64)> {
    let bound = line.split_once("le=\"")?.1.split_once('"')?.0;
    let count = line.rsplit_once(' ')?.1.parse().ok()?;
    Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, count))
}

fn add(mut histogram: Histogram, (bound, count): (f64, f64)) -> Histogram {
    match histogram.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
        Some((_, sum)) => *sum += count,
        None => histogram.push((bound, count)),
    }
    histogram.sort_by(|one, other| one.0.total_cmp(&other.0));
    histogram
}

fn sum(one: Histogram, other: Histogram) -> Histogram {
    other.into_iter().fold(one, add)
}

fn difference(after: &Histogram, before: &Histogram) -> Histogram {
    let negative = before.iter().map(|(bound, count)| (*bound, -count)).collect();
    sum(after.clone(), negative)
}

/// A quantile as Prometheus estimates it, by linear interpolation within its bucket.
fn quantile(histogram: &Histogram, quantile: f64) -> Option<f64> {
    let rank = histogram.last()?.1 * quantile;
    let (mut lower, mut below) = (0.0, 0.0);
    for (bound, count) in histogram {
        if *count >= rank && *count > 0.0 {
            return Some(if bound.is_finite() {
                lower + (bound - lower) * (rank - below) / (count - below)
            } else {
                lower
            });
        }
        (lower, below) = (*bound, *count);
    }
    None
}

pub(crate) fn a_sidecar_at_rest(scene: &Scene<'_>) {
    let namespace = scene.namespace("rest");
    scene.users(&namespace, &[("carol", json!({ "deliveryMethod": "app" }))]);
    scene.start(&manifests::client_with_sidecar(&namespace, "service", &namespace));
    // The sidecar has read its realm and a user.
    eventually_blocking(START, "a decision", || {
        let reply = scene.verify(&namespace, "service", "carol", "000000");
        if reply.status == 401 { Ok(()) } else { Err(format!("{reply:?}")) }
    });
    let pod = scene.kubectl().get(&["pod", "service", "--namespace", &namespace]);
    let node = pod["spec"]["nodeName"].as_str().expect("a node");
    let first =
        eventually_blocking(START, "the kubelet's figures", || usage(scene, node, &namespace));
    let (last, seconds) = eventually_blocking(REST + START, "newer figures of the kubelet", || {
        let now = usage(scene, node, &namespace)?;
        let seconds = now.second - first.second;
        if seconds >= REST.as_secs_f64() {
            Ok((now, seconds))
        } else {
            Err(format!("{seconds} s newer"))
        }
    });
    let mebibytes = last.memory_bytes / 1024.0 / 1024.0;
    scene.world.figure(
        "sidecar at rest, memory (goal: under 10 MiB)",
        format!("{mebibytes:.1} MiB working set"),
    );
    let millicores = (last.cpu_seconds - first.cpu_seconds) / seconds * 1000.0;
    scene.world.figure(
        "sidecar at rest, processor (goal: under 1 millicore)",
        format!("{millicores:.2} millicores"),
    );
}

struct Usage {
    /// Time of the measurement, in seconds since the epoch.
    second: f64,
    memory_bytes: f64,
    cpu_seconds: f64,
}

/// From the kubelet's `/metrics/resource`, which every cluster has.
fn usage(scene: &Scene<'_>, node: &str, namespace: &str) -> Result<Usage, String> {
    let text = scene.kubectl().try_raw(&format!("/api/v1/nodes/{node}/proxy/metrics/resource"))?;
    let sample = |metric: &str| {
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        let line = lines.find(|line| {
            line.contains(&format!("container=\"{SIDECAR}\""))
                && line.contains(&format!("namespace=\"{namespace}\""))
        });
        let mut numbers = line.and_then(|line| line.split_once("} ")).into_iter();
        let mut numbers = numbers.next().map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        let mut number = || numbers.next().and_then(|text| text.parse::<f64>().ok());
        number().zip(number()).ok_or(format!("the kubelet has no {metric} of the sidecar so far"))
    };
    let (memory_bytes, _) = sample("container_memory_working_set_bytes")?;
    let (cpu_seconds, milliseconds) = sample("container_cpu_usage_seconds_total")?;
    Ok(Usage { second: milliseconds / 1000.0, memory_bytes, cpu_seconds })
}
