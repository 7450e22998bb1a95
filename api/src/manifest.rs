//! Reads manifests from files, without an API server.
//!
//! Returns the users and Secrets of a file, and a [`Problem`] with file, line and field for
//! everything that an API server would reject. A document with a problem is left out; the others of
//! the file are still read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::LazyLock;

use data_encoding::BASE64;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use serde_json::{Value as Json, json};
use twofactor_core::secret::SecretText;
use twofactor_core::user::UserDefinition;
use zeroize::Zeroize;

use crate::labels::{API_VERSION, GROUP};
use crate::schema::{self, Misfit};
use crate::user::TwoFactorUser;
use crate::validate::validate;
use crate::yaml::{self, Node, Value};

const USER_KIND: &str = "TwoFactorUser";
const REALM_KIND: &str = "TwoFactorRealm";
const USER_FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
const SECRET_FIELDS: [&str; 7] =
    ["apiVersion", "data", "immutable", "kind", "metadata", "stringData", "type"];

/// The schema that an API server checks a user's spec with.
static SPEC_SCHEMA: LazyLock<Json> = LazyLock::new(|| {
    let crd = serde_json::to_value(TwoFactorUser::crd()).unwrap_or_default();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
});

/// The schema of `metav1.ObjectMeta`. Fields that only an API server fills in may have any value,
/// because exported objects contain them.
static METADATA_SCHEMA: LazyLock<Json> = LazyLock::new(|| {
    let texts = json!({
        "type": "object", "additionalProperties": { "type": "string" }
    });
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "annotations": texts, "labels": texts, "name": { "type": "string" }, "namespace": { "type": "string" },
            "creationTimestamp": {}, "deletionGracePeriodSeconds": {}, "deletionTimestamp": {}, "finalizers": {},
            "generateName": {}, "generation": {}, "managedFields": {}, "ownerReferences": {}, "resourceVersion": {},
            "selfLink": {}, "uid": {}
        }
    })
});

/// The content of one or more files.
#[derive(Debug, Default)]
pub struct Manifests {
    /// Every user that could be read. [`Located::validate`] says whether it is valid.
    pub users: Vec<Located<TwoFactorUser>>,
    /// Every Secret that could be read.
    pub secrets: Vec<Located<SecretManifest>>,
    /// The problems. Each of them may hide a user.
    pub problems: Vec<Problem>,
    /// The documents of other kinds, which hide no user.
    pub left_out: Vec<LeftOut>,
}

impl Manifests {
    /// Adds the content of another file.
    pub fn append(&mut self, mut other: Self) {
        self.users.append(&mut other.users);
        self.secrets.append(&mut other.secrets);
        self.problems.append(&mut other.problems);
        self.left_out.append(&mut other.left_out);
    }

    /// Returns the Secret that a user of this namespace refers to. Manifests without a namespace
    /// belong to the same namespace.
    #[must_use]
    pub fn secret(&self, namespace: Option<&str>, name: &str) -> Option<&SecretManifest> {
        let mut secrets = self.secrets.iter().map(|secret| &secret.value);
        secrets.find(|secret| secret.namespace.as_deref() == namespace && secret.name == name)
    }
}

/// An object and its position.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// The object.
    pub value: T,
    /// The file, as it was named to [`read`].
    pub file: String,
    /// The line on which the object starts, counted from 1.
    pub line: usize,
    /// The line of each field, by its path.
    fields: BTreeMap<String, usize>,
}

impl<T> Located<T> {
    /// Returns the line of a field such as `spec.email`. If the field is not written, returns the
    /// line of its parent.
    #[must_use]
    pub fn line_of(&self, field: &str) -> usize {
        let mut path = field;
        loop {
            if let Some(line) = self.fields.get(path) {
                return *line;
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return self.line,
            }
        }
    }
}

impl Located<TwoFactorUser> {
    /// Validates the user like [`validate`], and adds file and line to each problem.
    ///
    /// # Errors
    /// Returns every invalid field.
    pub fn validate(&self) -> Result<UserDefinition, Vec<Problem>> {
        validate(&self.value).map_err(|errors| {
            let problem = |error: crate::validate::FieldError| Problem {
                file: self.file.clone(),
                line: self.line_of(&error.field),
                field: Some(error.field),
                message: error.message,
            };
            errors.into_iter().map(problem).collect()
        })
    }
}

/// A document of a kind that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The file, as it was named to [`read`].
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The kind.
    pub kind: String,
}

/// A Kubernetes Secret with its values, already decoded. They are never printed, and wiped when
/// they are dropped.
#[derive(Clone, Debug)]
pub struct SecretManifest {
    /// The namespace. If it is absent, the Secret belongs to the reader's own namespace.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// The values that are text, by their keys.
    pub values: BTreeMap<String, SecretText>,
    /// The keys whose values are not text, such as a picture.
    pub binary: BTreeSet<String>,
}

/// A problem with a file. The message never contains the value of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named to [`read`].
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The field, such as `spec.email`, unless the problem is about the whole document.
    pub field: Option<String>,
    /// What is invalid, as a sentence that begins with the field's name.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field.as_deref().unwrap_or("the document");
        write!(formatter, "{}:{}: {field}: {}", self.file, self.line, self.message)
    }
}

impl std::error::Error for Problem {}

/// Reads a file of YAML or JSON documents as `kubectl` does: of the kind `TwoFactorUser`, `Secret`,
/// or a list of them. Documents of other kinds are left out.
#[must_use]
pub fn read(file: &str, content: &[u8]) -> Manifests {
    let mut reader = Reader { file, found: Manifests::default() };
    for document in yaml::read(content) {
        match document {
            Ok(node) => reader.object(&node),
            Err(broken) => reader.problem(broken.line, None, broken.message),
        }
    }
    reader.found
}

struct Reader<'a> {
    file: &'a str,
    found: Manifests,
}

impl Reader<'_> {
    fn problem(&mut self, line: usize, field: Option<&str>, message: impl Into<String>) {
        let (file, field) = (self.file.to_owned(), field.map(str::to_owned));
        self.found.problems.push(Problem { file, line, field, message: message.into() });
    }

    fn misfits(&mut self, misfits: Vec<Misfit>) {
        for Misfit { line, field, message } in misfits {
            self.problem(line, Some(&field), message);
        }
    }

    fn located<T>(&self, node: &Node, value: T) -> Located<T> {
        let mut fields = BTreeMap::new();
        collect_lines(node, "", &mut fields);
        Located { value, file: self.file.to_owned(), line: node.line, fields }
    }

    fn object(&mut self, node: &Node) {
        if !matches!(node.value, Value::Map(_)) {
            return self.problem(
                node.line,
                None,
                "is no manifest: a mapping with apiVersion and kind is needed",
            );
        }
        let mut header = |field| {
            let (line, message) = match node.get(field) {
                Some(value) => match value.text() {
                    Some(text) => return Some((value.line, text)),
                    None => (value.line, "must be text"),
                },
                None => (node.line, "is missing"),
            };
            self.problem(line, Some(field), message);
            None
        };
        if let (Some(version), Some(kind)) = (header("apiVersion"), header("kind")) {
            self.typed(node, version, kind);
        }
    }

    /// Reads an object of this version and kind, each with its line.
    fn typed(&mut self, node: &Node, version: (usize, &str), kind: (usize, &str)) {
        let (expected, read): (_, fn(&mut Self, &Node)) = match kind.1 {
            USER_KIND => (API_VERSION, Self::user),
            // A realm defines allowed namespaces and providers, which do not exist here.
            REALM_KIND => (API_VERSION, |_, _| {}),
            "Secret" => ("v1", Self::secret),
            _ => match kind.1.strip_suffix("List") {
                Some(item) => return self.list(node, version, (kind.0, item)),
                None => return self.other(version.1, kind),
            },
        };
        if version.1 == expected {
            read(self, node);
        } else {
            self.problem(
                version.0,
                Some("apiVersion"),
                format!("must be {expected} for kind {}", kind.1),
            );
        }
    }

    /// Leaves out a document of another kind, unless the kind looks like a typing error.
    fn other(&mut self, version: &str, kind: (usize, &str)) {
        let meant = [USER_KIND, REALM_KIND, "Secret", "List"];
        let of_our_group = version.split('/').next() == Some(GROUP);
        if of_our_group || meant.iter().any(|name| name.eq_ignore_ascii_case(kind.1)) {
            let message =
                "is not known; known here are TwoFactorUser, TwoFactorRealm, Secret and List";
            return self.problem(kind.0, Some("kind"), message);
        }
        let (file, kind) = (self.file.to_owned(), (kind.0, kind.1.to_owned()));
        self.found.left_out.push(LeftOut { file, line: kind.0, kind: kind.1 });
    }

    /// Reads the items of a list. As in `kubectl`, items of a list such as `SecretList` need no
    /// version and kind of their own.
    fn list(&mut self, node: &Node, version: (usize, &str), item_kind: (usize, &str)) {
        match node.entries().iter().find(|entry| entry.key == "items").map(|entry| &entry.node) {
            Some(Node { value: Value::List(items), .. }) => {
                for item in items {
                    let named = item.get("apiVersion").is_some() || item.get("kind").is_some();
                    if named || item_kind.1.is_empty() || !matches!(item.value, Value::Map(_)) {
                        self.object(item);
                    } else {
                        self.typed(item, version, item_kind);
                    }
                }
            }
            Some(Node { value: Value::Null, .. }) => {}
            Some(items) => self.problem(items.line, Some("items"), "must be a list"),
            None => self.problem(node.line, Some("items"), "is missing"),
        }
    }

    fn user(&mut self, node: &Node) {
        let mut misfits = unknown_fields(node, &USER_FIELDS);
        let metadata = metadata(node, &mut misfits);
        match node.get("spec") {
            Some(spec) => schema::check(&SPEC_SCHEMA, spec, "spec", &mut misfits),
            None => misfits.push(missing(node.line, "spec")),
        }
        let (Some(metadata), true) = (metadata, misfits.is_empty()) else {
            return self.misfits(misfits);
        };
        let spec = node.get("spec").map(Node::to_json).unwrap_or_default();
        match serde_json::from_value(spec) {
            // The status is not read, because only the operator writes it, as with an API server.
            Ok(spec) => {
                let user = TwoFactorUser { metadata, spec, status: None };
                self.found.users.push(self.located(node, user));
            }
            // The schema is generated from the type, so what matches one matches the other. The
            // cause is not shown, because it could quote an address.
            Err(_) => self.problem(node.line, Some("spec"), "cannot be read"),
        }
    }

    fn secret(&mut self, node: &Node) {
        let mut misfits = unknown_fields(node, &SECRET_FIELDS);
        let metadata = metadata(node, &mut misfits);
        let (mut values, mut binary) = (BTreeMap::new(), BTreeSet::new());
        // In this order, because `stringData` takes precedence over `data`, as in Kubernetes.
        for (field, decode) in [("data", true), ("stringData", false)] {
            let Some(data) = node.get(field) else { continue };
            if !matches!(data.value, Value::Map(_)) {
                misfits.push(misfit(data.line, field, "must be a mapping"));
            }
            for entry in data.entries() {
                let path = schema::join(field, &entry.key);
                let value = match &entry.node.value {
                    Value::Text(text) if decode => decode_base64(text),
                    Value::Text(text) => Ok(Some(SecretText::new(text.to_string()))),
                    // An API server stores an empty value.
                    Value::Null => Ok(Some(SecretText::new(String::new()))),
                    Value::Bool(_) | Value::Number(_) => Err("must be text: put it in quotes"),
                    Value::List(_) | Value::Map(_) => Err("must be text"),
                };
                let key = entry.key.clone();
                match value {
                    Ok(Some(value)) => {
                        binary.remove(&key);
                        values.insert(key, value);
                    }
                    Ok(None) => drop(binary.insert(key)),
                    Err(message) => misfits.push(misfit(entry.line, &path, message)),
                }
            }
        }
        match metadata {
            Some(ObjectMeta { namespace, name: Some(name), .. }) if misfits.is_empty() => {
                let secret = SecretManifest { namespace, name, values, binary };
                self.found.secrets.push(self.located(node, secret));
            }
            _ => self.misfits(misfits),
        }
    }
}

fn misfit(line: usize, field: &str, message: &str) -> Misfit {
    Misfit { line, field: field.to_owned(), message: message.to_owned() }
}

fn missing(line: usize, field: &str) -> Misfit {
    misfit(line, field, "is missing")
}

fn unknown_fields(node: &Node, known: &[&str]) -> Vec<Misfit> {
    let unknown = node.entries().iter().filter(|entry| !known.contains(&entry.key.as_str()));
    unknown
        .map(|entry| schema::unknown_field(entry.line, entry.key.clone(), known.iter().copied()))
        .collect()
}

/// Reads the object's metadata, which must have a name.
fn metadata(node: &Node, misfits: &mut Vec<Misfit>) -> Option<ObjectMeta> {
    let Some(metadata) = node.get("metadata") else {
        misfits.push(missing(node.line, "metadata"));
        return None;
    };
    let before = misfits.len();
    schema::check(&METADATA_SCHEMA, metadata, "metadata", misfits);
    if let Some(name) = metadata.get("name").filter(|name| name.text() == Some("")) {
        misfits.push(misfit(name.line, "metadata.name", "is empty"));
    }
    if misfits.len() > before {
        return None;
    }
    let read = serde_json::from_value(metadata.to_json());
    // The cause is not shown, because it could quote an annotation that repeats a Secret.
    read.map_err(|_| misfits.push(misfit(metadata.line, "metadata", "cannot be read"))).ok()
}

/// Decodes a value, or returns nothing if it is not text.
fn decode_base64(text: &str) -> Result<Option<SecretText>, &'static str> {
    // Line breaks are allowed, as in an API server, because `base64` prints them.
    let mut symbols: Vec<u8> = Vec::with_capacity(text.len());
    symbols.extend(text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')));
    let decoded = BASE64.decode(&symbols);
    symbols.zeroize();
    let bytes = decoded.map_err(|_| "is not base64: text in clear belongs under stringData")?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Some(SecretText::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            None
        }
    })
}

fn collect_lines(node: &Node, path: &str, lines: &mut BTreeMap<String, usize>) {
    for entry in node.entries() {
        let path = schema::join(path, &entry.key);
        collect_lines(&entry.node, &path, lines);
        lines.insert(path, entry.line);
    }
}

#[cfg(test)]
mod tests;
