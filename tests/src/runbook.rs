//! Runs the commands of a page of the operations manual, as an administrator would paste them into
//! a shell.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::kubernetes::finish;
use crate::{scratch, tools};

/// Timeout for one block of commands. The commands have timeouts of their own.
const BOUND: Duration = Duration::from_mins(6);

/// The commands of a page, by heading.
#[derive(Debug)]
pub struct Runbook(Vec<(String, String)>);

impl Runbook {
    /// Reads a page of `docs/operations`.
    #[must_use]
    pub fn read(page: &str) -> Self {
        let path = checkout().join("docs/operations").join(page);
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let (mut blocks, mut heading, mut block) = (Vec::new(), String::new(), None::<String>);
        for line in text.lines() {
            match (&mut block, line) {
                (Some(_), "```") => {
                    blocks.extend(block.take().map(|commands| (heading.clone(), commands)));
                }
                (Some(commands), line) => {
                    commands.push_str(line);
                    commands.push('\n');
                }
                (None, "```sh") => block = Some(String::new()),
                (None, line) if line.starts_with('#') => {
                    line.trim_start_matches('#').trim().clone_into(&mut heading);
                }
                (None, _) => {}
            }
        }
        Self(blocks)
    }

    /// The headings that have commands.
    #[must_use]
    pub fn headings(&self) -> Vec<&str> {
        let mut headings: Vec<&str> = self.0.iter().map(|(heading, _)| heading.as_str()).collect();
        headings.dedup();
        headings
    }

    /// The blocks of commands under a heading.
    #[must_use]
    pub fn blocks(&self, heading: &str) -> Vec<&str> {
        let of_heading = self.0.iter().filter(|(found, _)| found == heading);
        let blocks: Vec<&str> = of_heading.map(|(_, commands)| commands.as_str()).collect();
        assert!(!blocks.is_empty(), "no commands under {heading}");
        blocks
    }
}

/// A shell in an empty folder, beside which are the charts.
#[derive(Debug)]
pub struct Shell {
    folder: TempDir,
    kubeconfig: OsString,
    /// Names of the page, and what the test has in their place.
    names: Vec<(String, String)>,
}

impl Shell {
    /// A shell with a kubeconfig, in which other names take the place of those of the page.
    #[must_use]
    pub fn new(kubeconfig: impl Into<OsString>, names: &[(&str, &str)]) -> Self {
        let folder = scratch::folder("runbook");
        symlink(checkout().join("charts"), folder.path().join("charts")).expect("a link");
        let names = names.iter().map(|(page, test)| ((*page).to_owned(), (*test).to_owned()));
        Self { folder, kubeconfig: kubeconfig.into(), names: names.collect() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs commands; panics with what they printed if one of them fails.
    #[track_caller]
    pub fn run(&self, commands: &str) {
        let mut commands = commands.to_owned();
        for (page, test) in &self.names {
            commands = commands.replace(page, test);
        }
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &commands]).current_dir(self.folder.path());
        let kubectl = tools::find_kubernetes("kubectl");
        let own = kubectl.parent().map(Path::to_owned).into_iter();
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(own.chain(std::env::split_paths(&others)));
        bash.env("KUBECONFIG", &self.kubeconfig).env("PATH", path.expect("a search path"));
        let said = finish(bash, "", BOUND);
        assert!(said.success, "{commands}\nfailed: {said}");
    }
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout")
}
