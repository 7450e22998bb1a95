//! Runs the end-to-end tests (`make e2e`): the whole system in a cluster where pods really run.
//!
//! Needs the cluster that `KUBECONFIG` names, with the images in it. Each argument is a part of the
//! names of the tests to run; without arguments all run. Prints a line for each test, the state of
//! the cluster for those that failed, and figures, and exits with 1 if a test failed. The tests run
//! in the order of the list and share one release of the chart. Tests that stop parts of it or
//! measure something run alone; the others run a few at a time, because they mostly wait.
//!
//! With `TWOFACTOR_CLUSTER_CONTROL` (the path of `tests/cluster/cluster`), tests also kill
//! components of the node and enforce network policies, and may uninstall an existing release and
//! install it again. Without it, these tests are skipped, and the summary says so. Use a cluster
//! for testing only.

#![allow(clippy::print_stdout, reason = "a test runner prints")]

mod admission;
mod alerts;
mod chaos;
mod figures;
mod isolation;
mod load;
mod manifests;
mod mesh;
mod metrics;
mod network_policies;
mod openshift;
mod release;
mod restore;
mod scene;
mod story;
mod upgrade;
mod world;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use twofactor_tests::kubernetes::Kubectl;

use crate::scene::Scene;
use crate::world::World;

/// What a test needs besides the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// `TWOFACTOR_CLUSTER_CONTROL`.
    ClusterControl,
    /// The images of the previous release, which only the node of the tests has, and a release that
    /// may be uninstalled.
    PreviousImages,
    /// A release that this run installed, or a cluster that the tests control.
    OwnRelease,
}

/// Whether other tests may run at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    /// With others of this kind, because each has its own namespaces and does not change the
    /// release.
    Together,
    /// Without any other test.
    Alone,
}

struct Entry {
    name: &'static str,
    company: Company,
    needs: Needs,
    run: fn(&Scene<'_>),
}

macro_rules! entries {
    ($($company:ident $needs:ident: $group:ident::$name:ident,)*) => {
        &[$(Entry {
            name: concat!(stringify!($group), "::", stringify!($name)),
            company: Company::$company,
            needs: Needs::$needs,
            run: $group::$name,
        }),*]
    };
}

/// Number of tests that run at the same time. More would wait for the processor instead of the
/// cluster.
const LANES: usize = 4;

/// In this order: of the tests that run together the longest first, and the one that uninstalls
/// last.
const TESTS: &[Entry] = entries![
    Together Nothing: restore::a_deleted_namespace_is_restored_and_its_services_go_on,
    Together Nothing: story::the_key_management_example_does_what_its_readme_shows,
    Together Nothing: figures::a_sidecar_at_rest,
    Together Nothing: story::a_pod_in_a_namespace_that_is_not_allowed_waits_until_it_is_allowed,
    Together Nothing: metrics::prometheus_scrapes_all_by_the_charts_labels_and_no_alert_lasts,
    Together Nothing: isolation::the_network_gives_the_app_nothing_but_its_own_sidecar,
    Together Nothing: isolation::the_app_finds_no_secret_in_its_files_environment_or_processes,
    Together Nothing: isolation::the_apps_service_account_may_read_nothing_of_ours,
    Together Nothing: story::a_code_mailed_for_one_namespace_does_not_verify_in_another,
    Together Nothing: story::a_sidecar_of_another_realm_does_not_know_these_users,
    Together Nothing: story::a_job_with_the_sidecar_completes,
    Together Nothing: story::the_charts_own_test_passes,
    Together Nothing: story::a_pod_without_the_label_is_not_changed,
    Together Nothing: mesh::a_mesh_delays_the_first_verify_and_restarts_no_sidecar,
    Together Nothing: admission::the_restricted_level_admits_pods_with_the_sidecar,
    Together Nothing: admission::an_invalid_pod_is_refused_with_a_sentence_that_names_the_mistake,
    Alone Nothing: figures::pod_start_with_and_without_the_sidecar,
    Alone Nothing: figures::admission_of_fifty_pods,
    Alone Nothing: admission::while_the_webhook_is_down_only_labelled_pods_are_refused,
    Alone Nothing: admission::a_lost_ca_and_a_rotated_one_fail_no_creation,
    Alone Nothing: admission::a_rolling_restart_fails_no_creation,
    Alone Nothing: admission::a_stopped_controller_fails_no_creation,
    Alone Nothing: admission::an_emptied_redis_password_fails_no_creation,
    Alone Nothing: admission::a_controller_killed_for_memory_fails_no_creation,
    Alone Nothing: chaos::a_killed_operator_changes_no_answer,
    Alone Nothing: chaos::a_killed_redis_is_an_outage_and_nothing_else,
    Alone Nothing: chaos::another_password_of_redis_is_an_outage_of_seconds_at_most,
    Alone Nothing: chaos::tls_of_redis_is_switched_off_and_on_with_no_outage_but_its_restarts,
    Alone ClusterControl: chaos::a_killed_kubelet_changes_no_answer,
    Alone ClusterControl: network_policies::the_charts_policies_allow_only_the_pods_that_they_name,
    Alone Nothing: restore::a_lost_redis_is_filled_again,
    Alone OwnRelease: restore::a_lost_master_key_is_reported_and_restored_or_replaced,
    Alone OwnRelease: restore::a_lost_cluster_is_built_again_from_the_backup,
    Alone Nothing: upgrade::an_upgrade_keeps_seeds_and_fails_no_verify,
    Alone PreviousImages: upgrade::an_upgrade_from_the_previous_release_and_back_fails_no_verify,
    Alone PreviousImages: upgrade::an_upgrade_of_the_charts_redis_from_the_previous_release_and_back_is_a_short_outage,
    Alone OwnRelease: openshift::operator_sidecar_and_redis_run_as_a_user_that_the_cluster_chooses,
    Alone OwnRelease: upgrade::users_survive_an_uninstallation_and_verify_after_the_next_installation,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let keep = arguments.iter().any(|argument| argument == "--keep");
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    if let Some(unknown) = arguments.iter().find(|argument| {
        argument.starts_with("--") && !["--keep", "--list"].contains(&argument.as_str())
    }) {
        eprintln!(
            "{unknown} is not known. Arguments: parts of names of tests, --list, --keep (what failed is not removed)"
        );
        return ExitCode::from(2);
    }
    let chosen: Vec<&Entry> = TESTS
        .iter()
        .filter(|entry| {
            filters.is_empty() || filters.iter().any(|filter| entry.name.contains(filter.as_str()))
        })
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        for entry in chosen {
            println!("{}", entry.name);
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        eprintln!("no test has {filters:?} in its name; see --list");
        return ExitCode::from(2);
    }
    let Some(kubectl) = Kubectl::from_environment() else {
        eprintln!(
            "KUBECONFIG is not set: name the cluster to test in. `make cluster` starts one on this machine"
        );
        return ExitCode::from(2);
    };
    run(&chosen, kubectl, keep)
}

fn run(chosen: &[&Entry], kubectl: Kubectl, keep: bool) -> ExitCode {
    let begun = Instant::now();
    let Some(world) = in_thread("setup", || World::set_up(kubectl)) else {
        println!("\nthe setup FAILED: no test was run");
        return ExitCode::FAILURE;
    };
    println!("set up in {:.1} s\n", begun.elapsed().as_secs_f64());
    let (mut failed, mut left_out, mut passed) = (Vec::new(), Vec::new(), 0);
    for group in chosen
        .chunk_by(|one, next| [one, next].iter().all(|entry| entry.company == Company::Together))
    {
        let mut runnable = VecDeque::new();
        for entry in group {
            if let Some(reason) = why_not(entry.needs, &world) {
                println!("left out  {}: {reason}", entry.name);
                left_out.push((entry.name, reason));
            } else {
                runnable.push_back(*entry);
            }
        }
        for (name, is_passed) in run_together(runnable, &world, keep) {
            if is_passed {
                passed += 1;
            } else {
                failed.push(name);
            }
        }
    }
    world.print_figures();
    let removed =
        (keep && !failed.is_empty()) || in_thread("tear down", || world.tear_down()).is_some();
    println!(
        "\n{passed} passed, {} failed, {} left out, in {:.0} s",
        failed.len(),
        left_out.len(),
        begun.elapsed().as_secs_f64()
    );
    for (name, reason) in &left_out {
        println!("LEFT OUT  {name}: {reason}");
    }
    for name in &failed {
        println!("FAILED    {name}");
    }
    if !removed {
        println!("FAILED    to remove what the tests made");
    }
    if failed.is_empty() && removed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn why_not(needs: Needs, world: &World) -> Option<&'static str> {
    match needs {
        Needs::ClusterControl if world.control().is_none() => {
            Some("TWOFACTOR_CLUSTER_CONTROL is not set, so nothing of the node can be changed")
        }
        Needs::PreviousImages if world.control().is_none() => {
            Some("TWOFACTOR_CLUSTER_CONTROL is not set, so the previous release has no images here")
        }
        Needs::OwnRelease if world.was_installed() && world.control().is_none() => {
            Some("the release was there before this run, which does not uninstall it")
        }
        _ => None,
    }
}

/// Runs tests in [`LANES`] lanes, and returns which of them passed.
fn run_together(entries: VecDeque<&Entry>, world: &World, keep: bool) -> Vec<(&'static str, bool)> {
    let (waiting, done) = (Mutex::new(entries), Mutex::new(Vec::new()));
    let lane = || {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(entry) = next else { return };
            println!("running   {}", entry.name);
            let passed = run_one(entry, world, keep);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((entry.name, passed));
        }
    };
    thread::scope(|scope| (0..LANES).for_each(|_| drop(scope.spawn(lane))));
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn run_one(entry: &Entry, world: &World, keep: bool) -> bool {
    let begun = Instant::now();
    let scene = Scene::new(world);
    let passed = in_thread(entry.name, || (entry.run)(&scene)).is_some();
    let took = begun.elapsed();
    if !passed {
        scene.print_diagnosis();
    }
    if passed || !keep {
        scene.remove();
    }
    println!(
        "{}  {} ({:.1} s)\n",
        if passed { "ok      " } else { "FAILED  " },
        entry.name,
        took.as_secs_f64()
    );
    passed
}

/// Runs a function in a thread. A panic ends only that thread, and is printed with its name.
fn in_thread<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, run)
            .expect("a thread");
        thread.join().ok()
    })
}

/// Runs `run` and then `after`, even if `run` panics, so that a stopped part is restored before a
/// failure is reported.
fn finally<T>(run: impl FnOnce() -> T, after: impl FnOnce()) -> T {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(run));
    after();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Timeout for a pod to start.
const START: Duration = Duration::from_mins(2);
