//! Checks that `docs/operations/troubleshooting.md` has a row for every reason in the code (of
//! conditions, of Events and of the webhook), and for every warning and error in the logs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Words in the same files that are no reasons.
const NOT_REASONS: [&str; 5] = ["False", "Namespace", "Opaque", "Secret", "True"];

/// Crates whose log lines administrators see.
const CRATES: [&str; 5] = ["operator", "sidecar", "store", "server", "core"];

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src")
}

fn operator() -> PathBuf {
    source("operator")
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/troubleshooting.md");
    fs::read_to_string(path).unwrap()
}

/// The code of a file, without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

/// The Rust files of a folder and of the folders in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The string literals of a text.
fn literals(code: &str) -> impl Iterator<Item = &str> {
    code.lines().flat_map(|line| line.split('"').skip(1).step_by(2))
}

/// Whether a literal is written as reasons are: `SecretNotFound`.
fn is_reason(literal: &str) -> bool {
    literal.starts_with(|first: char| first.is_ascii_uppercase())
        && literal.len() > 3
        && literal.chars().skip(1).any(|c| c.is_ascii_lowercase())
        && literal.chars().all(|c| c.is_ascii_alphabetic())
        && !NOT_REASONS.contains(&literal)
}

fn reasons_of_conditions_and_events() -> BTreeSet<String> {
    let folders = ["user", "realm"].map(|folder| operator().join(folder));
    let mut paths: Vec<PathBuf> = folders.iter().flat_map(|folder| files(folder)).collect();
    let more = ["watch/pod_findings.rs", "state/user_objects.rs", "process/obstacle.rs"];
    paths.extend(more.map(|it| operator().join(it)));
    let codes: Vec<String> = paths.iter().map(|path| code(path)).collect();
    let found = codes.iter().flat_map(|code| literals(code));
    found.filter(|literal| is_reason(literal)).map(str::to_owned).collect()
}

fn reasons_of_the_webhook() -> BTreeSet<String> {
    let code = code(&operator().join("webhook/reason.rs"));
    // A row is `Variant = Verdict, "word";`.
    let rows = code.lines().filter(|line| line.trim_end().ends_with("\";") && line.contains(" = "));
    rows.flat_map(literals).map(str::to_owned).collect()
}

/// The words in backticks in the first column of the tables.
fn rows() -> BTreeSet<String> {
    let page = page();
    let cells = page.lines().filter(|line| line.starts_with("| `"));
    let first = cells.map(|line| line.split(" | ").next().unwrap_or_default().to_owned());
    first.flat_map(|cell| quoted(&cell)).collect()
}

fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_reason_has_a_row_and_every_row_a_reason() {
    let in_code: BTreeSet<String> =
        reasons_of_conditions_and_events().union(&reasons_of_the_webhook()).cloned().collect();
    assert!(in_code.len() > 50, "the code is no longer understood: {in_code:?}");
    let on_page = rows();
    let missing: Vec<_> = in_code.difference(&on_page).collect();
    assert!(missing.is_empty(), "without a row in troubleshooting.md: {missing:?}");
    let is_word = |word: &str| !word.contains(' ');
    let unknown: Vec<_> = on_page.difference(&in_code).filter(|word| is_word(word)).collect();
    assert!(unknown.is_empty(), "rows of troubleshooting.md without a reason: {unknown:?}");
}

/// The message of each warning and error in a file, up to the first value in it. A message that
/// is only a value has its row by hand.
fn log_messages(code: &str) -> Vec<String> {
    let calls = ["tracing::warn!(", "tracing::error!("].map(|call| code.split(call).skip(1));
    let messages = calls.into_iter().flatten().map(|rest| {
        let call = rest.split(");\n").next().unwrap_or_default();
        let call = call.split("),\n").next().unwrap_or_default();
        let message = literals(call).last().unwrap_or_default();
        message.split('{').next().unwrap_or_default().trim_end().to_owned()
    });
    messages.filter(|message| !message.is_empty()).collect()
}

#[test]
fn every_warning_and_error_in_the_logs_has_a_row() {
    let paths: Vec<PathBuf> = CRATES.iter().flat_map(|name| files(&source(name))).collect();
    let messages: Vec<String> = paths.iter().flat_map(|path| log_messages(&code(path))).collect();
    assert!(messages.len() > 40, "the code is no longer understood: {messages:?}");
    let page = page();
    let has_row = |message: &String| page.contains(&format!("\n| {message}"));
    let missing: Vec<_> = messages.iter().filter(|message| !has_row(message)).collect();
    assert!(missing.is_empty(), "without a row in troubleshooting.md: {missing:#?}");
}

/// The texts of the tables below the heading `Log lines`, up to the first `…`.
fn log_rows(page: &str) -> Vec<String> {
    let tables = page.split("## Log lines").nth(1).unwrap_or_default();
    let texts = tables.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    // A text in brackets describes a line that is only a value.
    let texts = texts.filter(|text| !text.starts_with(['(', '-']) && *text != "line");
    texts.map(|text| text.split('…').next().unwrap_or_default().trim_end().to_owned()).collect()
}

#[test]
fn every_row_of_a_log_line_has_its_text_in_the_code() {
    let paths: Vec<PathBuf> = CRATES.iter().flat_map(|name| files(&source(name))).collect();
    let codes: Vec<String> = paths.iter().map(|path| code(path)).collect();
    let rows = log_rows(&page());
    assert!(rows.len() > 40, "the page is no longer understood: {rows:?}");
    let is_in_code = |row: &String| codes.iter().any(|code| code.contains(row.as_str()));
    let unknown: Vec<_> = rows.iter().filter(|row| !is_in_code(row)).collect();
    assert!(unknown.is_empty(), "rows of troubleshooting.md without a log line: {unknown:#?}");
}
