//! Reads a pod's annotations. From these and the defaults it makes valid settings of the sidecar,
//! or a refusal that names the invalid annotation.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use twofactor_api::labels::REALM_ANNOTATION;

use super::defaults::{self, Range, SidecarDefaults, check_image, is_dns_label};
use super::quantity::{Quantity, Resource};
use super::quoted;
use super::reason::{Reason, Refusal};

/// Annotation with the port of the sidecar's API, 1 to 65535.
pub const PORT_ANNOTATION: &str = "twofactor.fountainai.io/port";
/// Annotation with the port of the sidecar's health and metrics, 1 to 65535.
pub const ADMIN_PORT_ANNOTATION: &str = "twofactor.fountainai.io/admin-port";
/// Annotation with the filter of the sidecar's log.
pub const LOG_ANNOTATION: &str = "twofactor.fountainai.io/log";
/// Annotation with the sidecar's image.
pub const IMAGE_ANNOTATION: &str = "twofactor.fountainai.io/image";
/// Annotation with the number of the app's own proxies at the end of `X-Forwarded-For`, 0 to 32.
pub const TRUSTED_PROXIES_ANNOTATION: &str = "twofactor.fountainai.io/trusted-proxies";
/// Annotation with the sidecar's CPU request.
pub const CPU_REQUEST_ANNOTATION: &str = "twofactor.fountainai.io/cpu-request";
/// Annotation with the sidecar's CPU limit.
pub const CPU_LIMIT_ANNOTATION: &str = "twofactor.fountainai.io/cpu-limit";
/// Annotation with the sidecar's memory request.
pub const MEMORY_REQUEST_ANNOTATION: &str = "twofactor.fountainai.io/memory-request";
/// Annotation with the sidecar's memory limit.
pub const MEMORY_LIMIT_ANNOTATION: &str = "twofactor.fountainai.io/memory-limit";

const LONGEST_LOG_FILTER: usize = 256;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Settings of the sidecar of one pod.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace whose users the pod verifies.
    pub realm: String,
    pub(super) port: u16,
    pub(super) admin_port: u16,
    pub(super) log: String,
    pub(super) trusted_proxies: u8,
    pub(super) image: String,
    pub(super) cpu: Range,
    pub(super) memory: Range,
}

/// Reads the annotations of a pod in `namespace`.
///
/// # Errors
/// Names the first invalid annotation.
pub fn settings(
    annotations: &BTreeMap<String, String>,
    namespace: &str,
    defaults: &SidecarDefaults,
) -> Result<Settings, Refusal> {
    let realm = annotations.get(REALM_ANNOTATION).map_or(namespace, String::as_str);
    if !is_dns_label(realm) {
        return Err(invalid(REALM_ANNOTATION, "must be the name of a namespace", realm));
    }
    let port = |annotation, default| {
        number(annotations, annotation, default, 1..=u16::MAX, "must be a port from 1 to 65535")
    };
    let (port, admin_port) = (
        port(PORT_ANNOTATION, defaults::PORT)?,
        port(ADMIN_PORT_ANNOTATION, defaults::ADMIN_PORT)?,
    );
    if port == admin_port {
        return Err(Refusal::new(
            Reason::Annotation,
            format!(
                "annotations {PORT_ANNOTATION} and {ADMIN_PORT_ANNOTATION}: must be two different ports, not \
                 both {port}"
            ),
        ));
    }
    let log = annotations.get(LOG_ANNOTATION).map_or(defaults::LOG, String::as_str);
    if !is_log_filter(log) {
        let rule =
            "must be error, warn, info, debug, trace or off, or a list such as info,audit=off";
        return Err(invalid(LOG_ANNOTATION, rule, log));
    }
    let trusted_proxies = number(
        annotations,
        TRUSTED_PROXIES_ANNOTATION,
        0,
        0..=32,
        "must be a number of proxies from 0 to 32",
    )?;
    let image = annotations.get(IMAGE_ANNOTATION).unwrap_or(&defaults.image);
    check_image(image).map_err(|rule| invalid(IMAGE_ANNOTATION, rule, image))?;
    let cpu = range(
        annotations,
        Resource::Cpu,
        CPU_REQUEST_ANNOTATION,
        CPU_LIMIT_ANNOTATION,
        &defaults.cpu,
    )?;
    let memory = range(
        annotations,
        Resource::Memory,
        MEMORY_REQUEST_ANNOTATION,
        MEMORY_LIMIT_ANNOTATION,
        &defaults.memory,
    )?;
    Ok(Settings {
        realm: realm.to_owned(),
        port,
        admin_port,
        log: log.to_owned(),
        trusted_proxies,
        image: image.clone(),
        cpu,
        memory,
    })
}

fn invalid(annotation: &str, rule: impl std::fmt::Display, value: &str) -> Refusal {
    Refusal::new(
        Reason::Annotation,
        format!("annotation {annotation}: {rule}; it is {}", quoted(value)),
    )
}

fn number<T: FromStr + PartialOrd>(
    annotations: &BTreeMap<String, String>,
    annotation: &'static str,
    default: T,
    range: RangeInclusive<T>,
    rule: &'static str,
) -> Result<T, Refusal> {
    let Some(text) = annotations.get(annotation) else {
        return Ok(default);
    };
    // `parse` alone would accept a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && range.contains(&number) => Ok(number),
        _ => Err(invalid(annotation, rule, text)),
    }
}

fn range(
    annotations: &BTreeMap<String, String>,
    resource: Resource,
    request_annotation: &'static str,
    limit_annotation: &'static str,
    defaults: &Range,
) -> Result<Range, Refusal> {
    let parse = |annotation: &'static str, default: &Quantity| {
        annotations.get(annotation).map_or(Ok(default.clone()), |text| {
            Quantity::parse(text, resource).map_err(|problem| invalid(annotation, problem, text))
        })
    };
    let request = parse(request_annotation, &defaults.request)?;
    let limit = parse(limit_annotation, &defaults.limit)?;
    if limit.is_zero() {
        return Err(invalid(limit_annotation, "must be more than 0", limit.as_str()));
    }
    if request.exceeds(&limit) {
        // Either may be a default, which the pod does not show, so the message names both with
        // their values.
        return Err(Refusal::new(
            Reason::Annotation,
            format!(
                "annotation {request_annotation}: must not be more than {limit_annotation}; they are {} and {}, \
                 defaults included",
                request.as_str(),
                limit.as_str()
            ),
        ));
    }
    Ok(Range { request, limit })
}

/// Whether the text is a list of levels and of `target=level`. The sidecar accepts more, such as a
/// bare target, but then a misspelt level would be read as a target, and nothing would be logged.
fn is_log_filter(text: &str) -> bool {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let is_target = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-.".contains(&byte))
    };
    text.len() <= LONGEST_LOG_FILTER
        && text.split(',').all(|part| match part.split_once('=') {
            Some((target, level)) => is_target(target) && is_level(level),
            None => is_level(part),
        })
}

#[cfg(test)]
mod tests {
    use super::super::samples::{annotations, defaults};
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, Refusal> {
        settings(&annotations(pairs), "kms", &defaults())
    }

    #[test]
    fn a_pod_without_annotations_gets_the_defaults_and_its_own_realm() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.realm, "kms");
        assert_eq!((settings.port, settings.admin_port), (8004, 18004));
        assert_eq!(settings.log, "info");
        assert_eq!(settings.image, "fountainai/twofactor-sidecar:0.1.0");
        assert_eq!(settings.cpu.limit.as_str(), "500m");
    }

    #[test]
    fn every_annotation_changes_its_setting() {
        let settings = read(&[
            (REALM_ANNOTATION, "people"),
            (PORT_ANNOTATION, "9004"),
            (ADMIN_PORT_ANNOTATION, "65535"),
            (LOG_ANNOTATION, "warn,twofactor_sidecar::verify=debug"),
            (TRUSTED_PROXIES_ANNOTATION, "2"),
            (IMAGE_ANNOTATION, "registry.example:5000/sidecar@sha256:abc"),
            (CPU_REQUEST_ANNOTATION, "0"),
            (CPU_LIMIT_ANNOTATION, "1"),
            (MEMORY_REQUEST_ANNOTATION, "32Mi"),
            (MEMORY_LIMIT_ANNOTATION, "0.5Gi"),
        ])
        .unwrap();
        assert_eq!(settings.realm, "people");
        assert_eq!((settings.port, settings.admin_port), (9004, 65535));
        assert_eq!(settings.log, "warn,twofactor_sidecar::verify=debug");
        assert_eq!(settings.trusted_proxies, 2);
        assert_eq!(settings.image, "registry.example:5000/sidecar@sha256:abc");
        assert_eq!((settings.cpu.request.as_str(), settings.cpu.limit.as_str()), ("0", "1"));
        assert_eq!(
            (settings.memory.request.as_str(), settings.memory.limit.as_str()),
            ("32Mi", "0.5Gi")
        );
    }

    #[test]
    fn a_refusal_names_the_invalid_annotation_and_its_rule() {
        let table: &[(&str, &[&str], &str)] = &[
            (REALM_ANNOTATION, &["", "People", "a/b", "a.b", "-"], "the name of a namespace"),
            (
                PORT_ANNOTATION,
                &[
                    "",
                    "0",
                    "65536",
                    "-1",
                    "+80",
                    " 80",
                    "80 ",
                    "http",
                    "8e3",
                    "0x50",
                    "99999999999999999999",
                ],
                "a port from 1 to 65535",
            ),
            (ADMIN_PORT_ANNOTATION, &["0", "x"], "a port from 1 to 65535"),
            (TRUSTED_PROXIES_ANNOTATION, &["", "-1", "33", "256", "one"], "from 0 to 32"),
            (
                LOG_ANNOTATION,
                &[
                    "",
                    "loud",
                    "info\nwarn",
                    "info,",
                    "a=b",
                    "=info",
                    "[span]=info",
                    "info audit=off",
                    &"info,".repeat(60),
                ],
                "or a list such as info,audit=off",
            ),
            (IMAGE_ANNOTATION, &["", " ", "a b", "a\n", "ä", &"a".repeat(1025)], "must"),
            (CPU_REQUEST_ANNOTATION, &["", "-1", "much", "1u"], "must"),
            (CPU_LIMIT_ANNOTATION, &["0", "0m", "many"], "must"),
            (MEMORY_REQUEST_ANNOTATION, &["16m", "16MB"], "must"),
            (MEMORY_LIMIT_ANNOTATION, &["0", "64m"], "must"),
        ];
        for (annotation, values, rule) in table {
            for value in *values {
                let refusal = read(&[(annotation, value)]).unwrap_err();
                assert_eq!(refusal.reason, Reason::Annotation);
                assert!(refusal.sentence.contains(annotation), "{}", refusal.sentence);
                assert!(refusal.sentence.contains(rule), "{}", refusal.sentence);
                assert!(!refusal.sentence.contains('\n'), "{}", refusal.sentence);
                assert!(refusal.sentence.len() < 400, "{}", refusal.sentence);
            }
        }
    }

    #[test]
    fn a_request_above_the_limit_is_refused_even_if_one_of_them_is_a_default() {
        let sentence = read(&[(MEMORY_LIMIT_ANNOTATION, "8Mi")]).unwrap_err().sentence;
        assert!(sentence.contains("they are 16Mi and 8Mi, defaults included"), "{sentence}");
        assert!(read(&[(CPU_REQUEST_ANNOTATION, "501m")]).is_err());
        assert!(read(&[(CPU_REQUEST_ANNOTATION, "0.5")]).is_ok());
    }

    #[test]
    fn the_two_ports_must_differ_even_if_one_of_them_is_a_default() {
        for (annotation, port) in [(PORT_ANNOTATION, "18004"), (ADMIN_PORT_ANNOTATION, "8004")] {
            let sentence = read(&[(annotation, port)]).unwrap_err().sentence;
            assert!(sentence.contains("two different ports"), "{sentence}");
        }
        assert!(read(&[(PORT_ANNOTATION, "18004"), (ADMIN_PORT_ANNOTATION, "8004")]).is_ok());
    }
}
