//! Makes the table of values in the chart's README from `values.yaml`, and compares.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Set by the command that the page names, to write the page.
const WRITE: &str = "TWOFACTOR_WRITE_PAGES";

/// Everything after this line is generated.
const MARK: &str = "\
<!-- Generated from values.yaml to the end; do not edit. To update it:
TWOFACTOR_WRITE_PAGES=1 cargo test -p twofactor-tests --test suite packaging::readme -->
";

fn chart(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/fountainai-2fa").join(file)
}

/// One value: its path, its default as written, and the comment above it.
struct Entry {
    path: String,
    default: Option<String>,
    comment: String,
}

/// Reads the values in their order. A comment is about the next key, or about several keys without
/// an empty line between; a comment before an empty line is about no key.
fn entries(values: &str) -> Vec<Entry> {
    let (mut entries, mut parents) = (Vec::new(), Vec::<(usize, String)>::new());
    let (mut comment, mut last_comment) = (Vec::new(), String::new());
    for line in values.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(words) = text.strip_prefix("# ") {
            comment.push(words);
        } else if text.is_empty() {
            comment.clear();
            last_comment.clear();
        } else {
            let (key, value) = text.split_once(':').unwrap();
            parents.retain(|(depth, _)| *depth < indent);
            let path: Vec<&str> =
                parents.iter().map(|(_, key)| key.as_str()).chain([key]).collect();
            let is_section = value.is_empty();
            if !comment.is_empty() {
                last_comment = comment.join(" ");
            }
            entries.push(Entry {
                path: path.join("."),
                default: (!is_section).then(|| value.trim().to_owned()),
                comment: last_comment.clone(),
            });
            comment.clear();
            // The comment of a section is about its keys too, unless they have their own.
            if is_section {
                parents.push((indent, key.to_owned()));
            }
        }
    }
    entries
}

fn table(values: &str) -> String {
    let mut table = String::from("\n| value | default | meaning |\n| --- | --- | --- |\n");
    let entries = entries(values);
    for Entry { path, default, comment } in &entries {
        let meaning = comment.replace('|', "\\|").replace('<', "&lt;");
        match default {
            Some(default) => {
                let default = default.replace('|', "\\|");
                let _ = writeln!(table, "| `{path}` | `{default}` | {meaning} |");
            }
            // What a section is about stands in a row of its own.
            None if comment.is_empty() => {}
            None => {
                let _ = writeln!(table, "| **`{path}`** | | {meaning} |");
            }
        }
    }
    table
}

#[test]
fn the_readme_of_the_chart_lists_every_value() {
    let values = fs::read_to_string(chart("values.yaml")).unwrap();
    for entry in entries(&values) {
        let Entry { path, default, comment } = entry;
        assert!(default.is_none() || !comment.is_empty(), "{path} has no comment");
    }
    let readme = fs::read_to_string(chart("README.md")).unwrap();
    let (own, listed) = readme.split_once(MARK).expect("the mark in the README");
    if std::env::var_os(WRITE).is_some() {
        fs::write(chart("README.md"), format!("{own}{MARK}{}", table(&values))).unwrap();
        return;
    }
    assert!(listed == table(&values), "charts/fountainai-2fa/README.md is out of date: see {MARK}");
}
