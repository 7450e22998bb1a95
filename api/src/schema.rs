//! Checks a YAML tree against the schema of a CRD, and reports every unknown field, missing field
//! and value of a wrong type.
//!
//! The Rust types are not used for this: they must accept the fields of a newer version when they
//! come from an API server, and serde would stop at the first error. [`validate`](crate::validate)
//! checks ranges and patterns.

use serde_json::Value as Json;

use crate::yaml::{Node, Value};

/// A field that does not match the schema.
pub(crate) struct Misfit {
    pub(crate) line: usize,
    pub(crate) field: String,
    pub(crate) message: String,
}

/// Compares `node`, whose path is `field`, with `schema`.
pub(crate) fn check(schema: &Json, node: &Node, field: &str, misfits: &mut Vec<Misfit>) {
    let mut add = |line: usize, field: &str, message: String| {
        misfits.push(Misfit { line, field: field.to_owned(), message });
    };
    match (schema["type"].as_str(), &node.value) {
        // As in an API server, null counts as absent and the default is used.
        (None, _) | (_, Value::Null) | (Some("boolean"), Value::Bool(_)) => {}
        (Some("string"), Value::Text(text)) => {
            if let Some(allowed) = schema["enum"].as_array()
                && !allowed.iter().any(|value| value == text.as_str())
            {
                add(
                    node.line,
                    field,
                    format!("must be {}", one_of(allowed.iter().filter_map(Json::as_str))),
                );
            }
        }
        (Some("string"), Value::Bool(_) | Value::Number(_)) => {
            add(node.line, field, "must be text: put it in quotes".to_owned());
        }
        (Some("string"), _) => add(node.line, field, "must be text".to_owned()),
        (Some("boolean"), _) => add(node.line, field, "must be true or false".to_owned()),
        (Some("integer"), Value::Number(number))
            if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
        (Some("integer"), _) => add(node.line, field, "must be a whole number".to_owned()),
        (Some("object"), Value::Map(entries)) => {
            let Some(properties) = schema["properties"].as_object() else {
                for entry in entries {
                    let path = join(field, &entry.key);
                    check(&schema["additionalProperties"], &entry.node, &path, misfits);
                }
                return;
            };
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str)
            {
                if node.get(name).is_none() {
                    add(node.line, &join(field, name), "is missing".to_owned());
                }
            }
            for entry in entries {
                let path = join(field, &entry.key);
                if let Some(schema) = properties.get(&entry.key) {
                    check(schema, &entry.node, &path, misfits);
                } else {
                    misfits.push(unknown_field(
                        entry.line,
                        path,
                        properties.keys().map(String::as_str),
                    ));
                }
            }
        }
        (Some("object"), _) => add(node.line, field, "must be a mapping".to_owned()),
        _ => {}
    }
}

/// Reports an unknown field. It is mostly a typing error, so the message lists the known fields.
pub(crate) fn unknown_field<'a>(
    line: usize,
    field: String,
    known: impl ExactSizeIterator<Item = &'a str>,
) -> Misfit {
    Misfit {
        line,
        field,
        message: format!("is not a known field; known here are {}", list(known, "and")),
    }
}

/// Returns the path of a field of `parent`.
pub(crate) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

fn one_of<'a>(values: impl Iterator<Item = &'a str>) -> String {
    list(values, "or")
}

fn list<'a>(values: impl Iterator<Item = &'a str>, last: &str) -> String {
    let values: Vec<_> = values.collect();
    match values.as_slice() {
        [others @ .., end] if !others.is_empty() => format!("{} {last} {end}", others.join(", ")),
        values => values.concat(),
    }
}
