//! Checks that each test that the tables of threats and of keys in `SECURITY.md` name exists, and
//! that each row has one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FOLDERS: [&str; 8] = [
    "api/src",
    "core/src",
    "operator/src",
    "server/src",
    "sidecar/src",
    "store/src",
    "tests/tests",
    "tests/e2e",
];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files of a folder and of the folders in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The names of all tests: functions that follow the attribute, and all those of the end-to-end
/// tests and of the conformance suite, which have none.
fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for folder in FOLDERS {
        for file in files(&project().join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            let all = folder == "tests/e2e"
                || file.components().any(|it| it.as_os_str() == "conformance");
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                is_test |= all || line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                if let Some((_, rest)) = line.split_once("fn ")
                    && !line.starts_with("//")
                {
                    let name = rest.split('(').next().unwrap_or_default();
                    if std::mem::take(&mut is_test) {
                        tests.insert(name.to_owned());
                    }
                }
            }
        }
    }
    tests
}

/// The rows of the table of a section, each with this number of cells, of which the last names
/// tests.
fn rows(title: &str, count: usize) -> Vec<Vec<String>> {
    let page = fs::read_to_string(project().join("SECURITY.md")).unwrap();
    let (_, section) = page.split_once(&format!("\n## {title}\n")).unwrap();
    let table = section.split("\n## ").next().unwrap_or_default();
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells: Vec<_> =
            row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        assert_eq!(cells.len(), count, "cells: {row}");
        cells
    })
    .collect()
}

#[test]
fn each_threat_and_each_key_names_tests_that_exist() {
    let (tests, threats) = (tests(), rows("Threat model", 4));
    let keys = rows("Keys, and how each is revoked", 6);
    assert!(threats.len() > 10 && keys.len() > 7, "{threats:?}, {keys:?}");
    for row in threats.into_iter().chain(keys) {
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        let named: Vec<_> = row.last().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row:?}: no test");
        for name in named {
            assert!(tests.contains(name), "{row:?}: there is no test {name}");
        }
    }
}
