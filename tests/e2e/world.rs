//! Installs the system that all tests share, collects their figures, and restores the cluster at
//! the end.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use twofactor_tests::kubernetes::{Kubectl, finish};

use crate::release::{self, CRDS, NAMESPACE};

/// Label of every namespace that a test creates.
pub(crate) const E2E_LABEL: &str = "twofactor.fountainai.io/e2e";

const REMOVAL: Duration = Duration::from_mins(3);

pub(crate) struct World {
    pub(crate) kubectl: Kubectl,
    control: Option<PathBuf>,
    was_installed: bool,
    had_crds: bool,
    figures: Mutex<Vec<[String; 2]>>,
}

impl World {
    /// Removes leftovers of a killed run, and installs the chart.
    pub(crate) fn set_up(kubectl: Kubectl) -> Self {
        let control = std::env::var_os("TWOFACTOR_CLUSTER_CONTROL")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        kubectl.run(&["get", "nodes"]);
        let was_installed = release::is_installed();
        let had_crds = kubectl.try_run(&["get", "crd", CRDS[0]]).is_ok();
        let world = Self { kubectl, control, was_installed, had_crds, figures: Mutex::default() };
        world.remove_namespaces();
        if !was_installed {
            let namespace = json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": { "name": NAMESPACE, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
            });
            world.kubectl.apply(&namespace);
            release::install(&[]);
        }
        world
    }

    /// The script that kills and starts components of the node.
    pub(crate) fn control(&self) -> Option<&PathBuf> {
        self.control.as_ref()
    }

    /// Runs the script of the node.
    pub(crate) fn control_node(&self, args: &[&str]) {
        let mut command = Command::new(self.control.as_ref().expect("TWOFACTOR_CLUSTER_CONTROL"));
        command.args(args);
        let said = finish(command, "", Duration::from_mins(2));
        assert!(said.success, "{args:?} of the node failed: {said}");
    }

    /// Whether the release was there before this run.
    pub(crate) const fn was_installed(&self) -> bool {
        self.was_installed
    }

    /// Records a figure for the table at the end.
    pub(crate) fn figure(&self, what: &str, value: impl Into<String>) {
        let value = value.into();
        println!("          {what}: {value}");
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).push([what.to_owned(), value]);
    }

    pub(crate) fn print_figures(&self) {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let width = figures.iter().map(|[what, _]| what.len()).max().unwrap_or_default();
        if !figures.is_empty() {
            println!("| {:width$} | figure |\n| {:-<width$} | --- |", "what", "");
        }
        figures.iter().for_each(|[what, value]| println!("| {what:width$} | {value} |"));
    }

    /// Removes everything that this run created. An earlier release stays.
    pub(crate) fn tear_down(&self) {
        self.remove_namespaces();
        if self.was_installed {
            return;
        }
        if release::is_installed() {
            release::uninstall();
        }
        if !self.had_crds {
            let args = [&["delete", "crd", "--ignore-not-found"], CRDS.as_slice()].concat();
            let said = self.kubectl.say_within(REMOVAL, &args, "");
            assert!(said.success, "{said}");
        }
        let said = self.kubectl.say_within(
            REMOVAL,
            &["delete", "namespace", "--ignore-not-found", NAMESPACE],
            "",
        );
        assert!(said.success, "{said}");
        if self.control.is_some() {
            // The node does not provision volumes, so it gets back the one that Redis had.
            self.control_node(&["volumes"]);
        }
    }

    fn remove_namespaces(&self) {
        let said =
            self.kubectl.say_within(REMOVAL, &["delete", "namespace", "--selector", E2E_LABEL], "");
        assert!(said.success, "{said}");
    }
}
