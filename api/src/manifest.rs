//! Reads manifests from files, without an API server.
//!
//! Returns the users and Secrets of a file, and a [`Problem`] with file, line and field for
//! everything that an API server would reject. A document with a problem is left out; the others of
//! the file are still read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use data_encoding::BASE64;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use serde_json::{Value as Json, json};
use twofactor_core::secret::SecretText;
use twofactor_core::user::UserDefinition;
use zeroize::Zeroize;

use crate::labels::API_VERSION;
use crate::schema::{self, Misfit};
use crate::user::TwoFactorUser;
use crate::validate::validate;
use crate::yaml::{self, Node, Value};

const USER_KIND: &str = "TwoFactorUser";
const REALM_KIND: &str = "TwoFactorRealm";
const USER_FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
const SECRET_FIELDS: [&str; 7] =
    ["apiVersion", "data", "immutable", "kind", "metadata", "stringData", "type"];
const LIST_FIELDS: [&str; 4] = ["apiVersion", "items", "kind", "metadata"];

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
    /// The problems.
    pub problems: Vec<Problem>,
}

impl Manifests {
    /// Adds the content of another file.
    pub fn append(&mut self, mut other: Self) {
        self.users.append(&mut other.users);
        self.secrets.append(&mut other.secrets);
        self.problems.append(&mut other.problems);
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

/// A Kubernetes Secret with values that are text and already decoded. They are never printed, and
/// wiped when they are dropped.
#[derive(Clone, Debug)]
pub struct SecretManifest {
    /// The namespace. If it is absent, the Secret belongs to the reader's own namespace.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// The values by their keys.
    pub values: BTreeMap<String, SecretText>,
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

/// Reads a file of YAML documents (or JSON, which is YAML too): of the kind `TwoFactorUser`,
/// `Secret`, or a `List` of them. A `TwoFactorRealm` may be among them, and is left out.
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
        let (Some((version_line, version)), Some((kind_line, kind))) =
            (header("apiVersion"), header("kind"))
        else {
            return;
        };
        let (expected, read): (_, fn(&mut Self, &Node)) = match kind {
            USER_KIND => (API_VERSION, Self::user),
            // A realm defines allowed namespaces and providers, which do not exist here.
            REALM_KIND => (API_VERSION, |_, _| {}),
            "Secret" => ("v1", Self::secret),
            "List" => ("v1", Self::list),
            _ => {
                let message = "is of no use here: only TwoFactorUser, Secret and List are read";
                return self.problem(kind_line, Some("kind"), message);
            }
        };
        if version == expected {
            read(self, node);
        } else {
            self.problem(
                version_line,
                Some("apiVersion"),
                format!("must be {expected} for kind {kind}"),
            );
        }
    }

    fn list(&mut self, node: &Node) {
        self.misfits(unknown_fields(node, &LIST_FIELDS));
        match node.get("items") {
            Some(Node { value: Value::List(items), .. }) => {
                for item in items {
                    self.object(item);
                }
            }
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
        let mut values = BTreeMap::new();
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
                    Value::Text(text) => Ok(SecretText::new(text.to_string())),
                    Value::Bool(_) | Value::Number(_) => Err("must be text: put it in quotes"),
                    Value::Null => Err("has no value: write one, or leave the key out"),
                    Value::List(_) | Value::Map(_) => Err("must be text"),
                };
                match value {
                    Ok(value) => drop(values.insert(entry.key.clone(), value)),
                    Err(message) => misfits.push(misfit(entry.line, &path, message)),
                }
            }
        }
        match metadata {
            Some(ObjectMeta { namespace, name: Some(name), .. }) if misfits.is_empty() => {
                let secret = SecretManifest { namespace, name, values };
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

fn decode_base64(text: &str) -> Result<SecretText, &'static str> {
    // Line breaks are allowed, as in an API server, because `base64` prints them.
    let mut symbols: Vec<u8> = Vec::with_capacity(text.len());
    symbols.extend(text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')));
    let decoded = BASE64.decode(&symbols);
    symbols.zeroize();
    let bytes = decoded.map_err(|_| "is not base64: text in clear belongs under stringData")?;
    String::from_utf8(bytes).map(SecretText::new).map_err(|error| {
        error.into_bytes().zeroize();
        "is not text once it is decoded"
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
