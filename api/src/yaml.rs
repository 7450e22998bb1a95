//! Parses YAML text into trees that know their lines, one [`Node`] for each document.
//!
//! An invalid document is reported with its position, and does not affect the other documents of
//! the file.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Spanned, budget, options};
use zeroize::Zeroizing;

/// Maximum nesting of lists and mappings. The manifests that are read here need 10.
const MAXIMUM_DEPTH: usize = 64;

/// A value and its line.
pub(crate) struct Node {
    /// The line in the file, counted from 1.
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// A value that JSON has too, because Kubernetes reads manifests as JSON.
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    /// Wiped when it is dropped, because every document may be a Secret until its kind is known.
    Text(Zeroizing<String>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a mapping with its value.
pub(crate) struct Entry {
    pub(crate) key: String,
    /// The line of the key.
    pub(crate) line: usize,
    pub(crate) node: Node,
}

/// A position at which the text is not YAML. The message never contains the text, which may be of a
/// Secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl Node {
    /// Returns the value of a key of this mapping. Returns nothing if this is not a mapping, or has
    /// no such key, or has null there, which an API server drops.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.entries().iter().find(|entry| entry.key == key)?;
        Some(&entry.node).filter(|node| !matches!(node.value, Value::Null))
    }

    /// Returns the entries of this mapping, or none if this is not a mapping.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Converts the value for serde. As in [`Node::get`], a key without a value is left out.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(number) => number.clone().into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .filter(|entry| !matches!(entry.node.value, Value::Null))
                .map(|entry| (entry.key.clone(), entry.node.to_json()))
                .collect(),
        }
    }

    /// Converts lines of the document into lines of the file.
    fn move_down(&mut self, lines: usize) {
        self.line += lines;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.move_down(lines)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.line += lines;
                    entry.node.move_down(lines);
                }
            }
            _ => {}
        }
    }
}

/// Reads every document of a file. Documents without content are left out.
pub(crate) fn read(content: &[u8]) -> Vec<Result<Node, Broken>> {
    let content = content.strip_prefix("\u{feff}".as_bytes()).unwrap_or(content);
    let documents = documents(content).into_iter();
    documents
        .flat_map(json_values)
        .filter_map(|document| match read_document(&document.text) {
            Ok(None) => None,
            Ok(Some(mut node)) => {
                node.move_down(document.lines_before);
                Some(Ok(node))
            }
            Err(Broken { line, message }) => {
                Some(Err(Broken { line: line + document.lines_before, message }))
            }
        })
        .collect()
}

struct Document<'a> {
    lines_before: usize,
    text: Cow<'a, [u8]>,
}

/// Splits a file at the lines that begin with `---` or `...`. Within a document, YAML forbids such
/// lines, in block scalars and quoted text too, unless they are indented. So this needs no parser
/// and also works if a document is invalid.
fn documents(content: &[u8]) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut start = 0;
    let mut lines_before = 0;
    let mut position = 0;
    for (index, line) in content.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let end = position + line.len();
        // A start marker belongs to its document, because content may follow on its line. An end
        // marker is dropped.
        let (cut, next_start, next_lines) = if is_marker(line, b"---") {
            (true, position, index)
        } else {
            (is_marker(line, b"..."), end, index + 1)
        };
        if cut {
            documents.push(Document { lines_before, text: content[start..position].into() });
            start = next_start;
            lines_before = next_lines;
        }
        position = end;
    }
    documents.push(Document { lines_before, text: content[start..].into() });
    documents.retain(|document| !is_empty(&document.text));
    documents
}

/// Splits a document into the JSON values that it begins with, and the rest. `kubectl` reads JSON
/// values one after another, with nothing between them.
fn json_values(document: Document<'_>) -> Vec<Document<'_>> {
    let Document { lines_before, text } = &document;
    let marker = if is_marker(text, b"---") { 3 } else { 0 };
    if text[marker..].trim_ascii_start().first() != Some(&b'{') {
        return vec![document];
    }
    let lines_to = |end: usize| lines_before + text[..end].split(|&byte| byte == b'\n').count() - 1;
    let mut values = Vec::new();
    let mut start = marker;
    let mut stream =
        serde_json::Deserializer::from_slice(&text[marker..]).into_iter::<IgnoredAny>();
    while let Some(Ok(_)) = stream.next() {
        let end = marker + stream.byte_offset();
        let value = json_as_yaml(&text[start..end]);
        values.push(Document { lines_before: lines_to(start), text: value.into() });
        start = end;
    }
    if !is_empty(&text[start..]) {
        values
            .push(Document { lines_before: lines_to(start), text: text[start..].to_vec().into() });
    }
    values
}

/// Replaces what is different in JSON and in YAML, and keeps the lines: tabs between the tokens,
/// and characters that are escaped as two surrogates.
fn json_as_yaml(json: &[u8]) -> Vec<u8> {
    let mut yaml = Vec::with_capacity(json.len());
    let mut in_string = false;
    let mut rest = json;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'"' => in_string = !in_string,
            b'\t' if !in_string => {
                yaml.push(b' ');
                continue;
            }
            b'\\' if in_string => {
                if let Some((character, tail)) = surrogates(tail) {
                    yaml.extend(character.encode_utf8(&mut [0; 4]).bytes());
                    rest = tail;
                    continue;
                }
                yaml.push(*byte);
                if let [escaped, tail @ ..] = rest {
                    yaml.push(*escaped);
                    rest = tail;
                }
                continue;
            }
            _ => {}
        }
        yaml.push(*byte);
    }
    yaml
}

/// Reads two surrogates, after the backslash of the first.
fn surrogates(text: &[u8]) -> Option<(char, &[u8])> {
    let unit = |text: &[u8]| {
        let digits = text.strip_prefix(b"u")?.get(..4)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let second = text.get(5..)?.strip_prefix(b"\\")?;
    let mut decoded = char::decode_utf16([unit(text)?, unit(second)?]);
    match (decoded.next()?, decoded.next()) {
        (Ok(character), None) => Some((character, &second[5..])),
        _ => None,
    }
}

fn is_marker(line: &[u8], marker: &[u8]) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}

/// Returns whether there are only blank lines, comments, directives and a start marker.
fn is_empty(text: &[u8]) -> bool {
    text.split(|&byte| byte == b'\n').all(|line| {
        let line = if is_marker(line, b"---") { &line[3..] } else { line };
        line.starts_with(b"%") || line.trim_ascii_start().first().is_none_or(|&byte| byte == b'#')
    })
}

fn read_document(text: &[u8]) -> Result<Option<Node>, Broken> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let line = before.split(|&byte| byte == b'\n').count();
        Broken { line, message: "is not UTF-8".to_owned() }
    })?;
    // Snippets are disabled, because they would quote the text. Booleans such as `yes` and octal
    // numbers such as `010` are those of YAML 1.1, as in `kubectl`.
    let options = options! {
        with_snippet: false,
        strict_booleans: false,
        legacy_octal_numbers: true,
        budget: budget! { max_depth: MAXIMUM_DEPTH },
    };
    let node: Spanned<Value> =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| broken(&e))?;
    Ok(Some(Node::from(node)).filter(|node| !matches!(node.value, Value::Null)))
}

fn broken(error: &Error) -> Broken {
    let error = error.without_snippet();
    let message = match error {
        Error::DuplicateMappingKey { .. } => "the same key is written twice".to_owned(),
        Error::UnknownAnchor { .. } => "an alias refers to an anchor that is not there".to_owned(),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "is nested too deeply or too large".to_owned()
        }
        Error::ExternalMessage { msg, .. } => format!("is not YAML: {msg}"),
        Error::Eof { .. } => "is not YAML: it ends too early".to_owned(),
        _ => "is YAML that manifests do not use".to_owned(),
    };
    Broken { line: error.location().map_or(1, |location| line_of(location.line())), message }
}

fn line_of(line: u64) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX)
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: line_of(spanned.referenced.line()), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value that JSON has too")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // `1e3` is a whole number, as in JSON.
        if value.fract() == 0.0
            && let Ok(whole) = format!("{value:.0}").parse::<i64>()
        {
            return Ok(Value::Number(whole.into()));
        }
        // Infinity is rejected, because JSON does not have it.
        Ok(serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(Zeroizing::new(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(Zeroizing::new(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element::<Spanned<Value>>()? {
            items.push(item.into());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let node = map.next_value::<Spanned<Value>>()?.into();
            entries.push(Entry { key: key.value, line: line_of(key.referenced.line()), node });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(content: &str) -> Vec<Result<usize, Broken>> {
        read(content.as_bytes())
            .into_iter()
            .map(|document| document.map(|node| node.line))
            .collect()
    }

    #[test]
    fn documents_are_split_where_yaml_splits_them() {
        assert_eq!(lines("a: 1\n---\nb: 2\n"), [Ok(1), Ok(3)]);
        assert_eq!(lines("---\na: 1\n--- # the second\nb: 2\n---\n"), [Ok(2), Ok(4)]);
        assert_eq!(lines("--- {a: 1}\n---\tb\n"), [Ok(1), Ok(2)]);
        assert_eq!(lines("a: 1\n...\n# a comment\n---\nb: 2\n...\n"), [Ok(1), Ok(5)]);
        assert_eq!(lines("%YAML 1.2\n---\na: 1\n"), [Ok(3)]);
        assert_eq!(lines("a: 1\r\n---\r\nb: 2\r\n"), [Ok(1), Ok(3)]);
        assert_eq!(lines("\u{feff}a: 1\n---\nb: 2"), [Ok(1), Ok(3)]);
    }

    #[test]
    fn dashes_within_a_document_do_not_split_it() {
        for text in [
            "a: |\n  ---\n  b\n",
            "a: >\n ---\n b\n",
            "- ---\n",
            "a: \"x\n  ---\n  y\"\n",
            "---a: 1\n",
            "----\n",
        ] {
            assert_eq!(lines(text).len(), 1, "{text:?}");
        }
        let document = read(b"a: |\n  ---\n  b\n").remove(0).map_err(|_| ()).ok().unwrap();
        assert_eq!(document.get("a").unwrap().text(), Some("---\nb\n"));
    }

    #[test]
    fn empty_documents_and_comments_are_nothing() {
        for text in [
            "",
            "\n",
            "---\n",
            "# only this\n",
            "---\n---\n# this\n...\n",
            "\u{feff}",
            "null\n",
            "~",
            "--- # x\r\n",
        ] {
            assert_eq!(lines(text), [], "{text:?}");
        }
    }

    #[test]
    fn a_broken_document_leaves_the_others_readable() {
        let documents = lines("a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n");
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[0], Ok(1));
        let broken = documents[1].as_ref().unwrap_err();
        assert!((3..=4).contains(&broken.line), "{broken:?}");
        assert!(broken.message.starts_with("is not YAML: "), "{broken:?}");
        assert_eq!(documents[2], Ok(6));
    }

    #[test]
    fn syntax_errors_do_not_quote_the_text() {
        for (text, line, message) in [
            ("a: 1\nhunter2: 1\nhunter2: 2\n", 3, "the same key is written twice"),
            ("a: *hunter2\n", 1, "an alias refers to an anchor that is not there"),
            ("? [hunter2]\n: 1\n", 1, "is YAML that manifests do not use"),
            ("a: !!binary hunter2\n", 1, "is YAML that manifests do not use"),
        ] {
            assert_eq!(
                lines(text),
                [Err(Broken { line, message: message.to_owned() })],
                "{text:?}"
            );
        }
        for text in [
            "a:\n\thunter2: 1\n",
            "a: \"hunter2\n",
            "a: @hunter2\n",
            "a: hunter2: hunter2\n",
            "a: }hunter2\n",
            "!<hunter2 a: 1",
        ] {
            let broken = lines(text).remove(0).unwrap_err();
            assert!(
                broken.message.starts_with("is ") && !broken.message.contains("hunter2"),
                "{broken:?}"
            );
        }
    }

    #[test]
    fn text_that_is_not_utf_8_is_found_by_line_and_by_document() {
        let documents = read(b"a: 1\n---\nb: 1\nc: \xff\n---\nd: 1\n");
        assert_eq!(documents.len(), 3);
        let Err(broken) = &documents[1] else { panic!("it is not UTF-8") };
        assert_eq!(*broken, Broken { line: 4, message: "is not UTF-8".to_owned() });
    }

    #[test]
    fn deep_nesting_and_many_aliases_are_refused() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert_eq!(
            lines(&deep)[0].as_ref().unwrap_err().message,
            "is nested too deeply or too large"
        );
        let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..10 {
            use std::fmt::Write as _;
            let item = format!("*a{},", n - 1);
            writeln!(laughs, "a{n}: &a{n} [{}]", item.repeat(10)).unwrap();
        }
        assert!(lines(&laughs)[0].is_err());
    }

    #[test]
    fn keys_and_values_know_their_lines() {
        let document = read(b"# a comment\n---\na:\n  b:\n    - 1\n    - x\n")
            .remove(0)
            .map_err(|_| ())
            .ok()
            .unwrap();
        let a = &document.entries()[0];
        let b = &a.node.entries()[0];
        let Value::List(items) = &b.node.value else { panic!("b is a list") };
        assert_eq!((document.line, a.line, b.line, items[0].line, items[1].line), (3, 3, 4, 5, 6));
    }
}
