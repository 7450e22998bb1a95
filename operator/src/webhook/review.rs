//! Reads admission reviews (`admission.k8s.io/v1`) and writes the answers. The body of a request
//! becomes a pod or an error, and a decision becomes the body of an answer.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use thiserror::Error;

use super::pod::Decision;
use super::reason::{Reason, Refusal};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Maximum length of a UID. Kubernetes' UIDs have 36 characters.
const LONGEST_UID: usize = 128;

/// A request that can be answered with a decision.
#[derive(Debug)]
pub struct Request {
    /// The UID of the request, which the answer must repeat.
    pub uid: String,
    /// The namespace in which the object is to be created.
    pub namespace: String,
    /// The object's name, absent if the API server generates one.
    pub name: Option<String>,
    /// Whether this is a dry run, so that nothing will be stored.
    pub dry_run: bool,
    /// Whether ephemeral containers are added to a pod that exists.
    pub is_debugging: bool,
    /// The pod that is to be created or debugged, or the refusal.
    pub pod: Result<Box<Pod>, Refusal>,
}

/// Errors of a body that cannot be answered with a decision. The messages do not repeat the body.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReviewError {
    /// The body is not JSON, or lacks the members of a review.
    #[error(
        "the body must be an AdmissionReview of admission.k8s.io/v1 in JSON (line {line}, column {column})"
    )]
    Unreadable {
        /// Line at which reading ended.
        line: usize,
        /// Column at which reading ended.
        column: usize,
    },
    /// The body has another version or another kind.
    #[error("apiVersion and kind must be admission.k8s.io/v1 and AdmissionReview")]
    AnotherKind,
    /// The review has no request; it may be an answer.
    #[error("request: is required")]
    NoRequest,
    /// The request has no usable UID that the answer could repeat.
    #[error("request.uid: must have 1 to 128 characters")]
    Uid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: Option<BodyRequest<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BodyRequest<'a> {
    uid: String,
    kind: Kind,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    operation: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    dry_run: Option<bool>,
    // Read as a pod after its kind is checked. Fields that a pod does not have are dropped.
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    version: String,
    #[serde(rename = "kind")]
    name: String,
}

/// Reads a review.
///
/// # Errors
/// Fails if the body is not a review, so that there is nothing to decide on.
pub fn read(body: &[u8]) -> Result<Request, ReviewError> {
    let review: Body<'_> = serde_json::from_slice(body)
        .map_err(|error| ReviewError::Unreadable { line: error.line(), column: error.column() })?;
    if review.api_version != API_VERSION || review.kind != KIND {
        return Err(ReviewError::AnotherKind);
    }
    let request = review.request.ok_or(ReviewError::NoRequest)?;
    if !(1..=LONGEST_UID).contains(&request.uid.len()) {
        return Err(ReviewError::Uid);
    }
    let is_debugging = is(&request, "UPDATE", "ephemeralcontainers");
    let pod = pod(&request, is_debugging || is(&request, "CREATE", ""));
    Ok(Request {
        is_debugging,
        uid: request.uid,
        namespace: request.namespace.unwrap_or_default(),
        name: request.name.filter(|name| !name.is_empty()),
        dry_run: request.dry_run.unwrap_or_default(),
        pod,
    })
}

/// Whether the request is this operation on pods or on a subresource of them.
fn is(request: &BodyRequest<'_>, operation: &str, sub_resource: &str) -> bool {
    request.operation.as_deref() == Some(operation)
        && request.sub_resource.as_deref().unwrap_or_default() == sub_resource
}

fn pod(request: &BodyRequest<'_>, is_known: bool) -> Result<Box<Pod>, Refusal> {
    let kind = &request.kind;
    let is_pod = kind.group.is_empty() && kind.version == "v1" && kind.name == "Pod";
    if !is_pod || !is_known {
        // Refused and not skipped, so that the administrator notices a webhook configuration that
        // names too much.
        let sentence = "this webhook decides about the creation of pods (v1) and about ephemeral \
                        containers only; its MutatingWebhookConfiguration must name nothing else";
        return Err(Refusal::new(Reason::NotAPod, sentence));
    }
    let object = request.object.ok_or_else(|| {
        Refusal::new(Reason::Unreadable, "request.object: must be the pod that is to be created")
    })?;
    serde_json::from_str(object.get()).map(Box::new).map_err(|error| {
        Refusal::new(Reason::Unreadable, format!("the pod cannot be read: {error}"))
    })
}

/// Writes the answer to a review.
#[must_use]
pub fn answer(uid: &str, decision: &Decision) -> String {
    let response = match decision {
        Decision::Inject(injection) => json!({
            "uid": uid,
            "allowed": true,
            "patchType": "JSONPatch",
            "patch": data_encoding::BASE64.encode(injection.patch.to_string().as_bytes()),
            "warnings": injection.warnings,
        }),
        Decision::Skip { .. } => json!({"uid": uid, "allowed": true}),
        Decision::Refuse(refusal) => {
            json!({"uid": uid, "allowed": false, "status": status(refusal)})
        }
    };
    json!({"apiVersion": API_VERSION, "kind": KIND, "response": response}).to_string()
}

fn status(refusal: &Refusal) -> Value {
    json!({"status": "Failure", "code": 422, "reason": "Invalid", "message": refusal.sentence})
}

#[cfg(test)]
mod tests {
    use super::super::pod::inject;
    use super::super::samples::{self, defaults};
    use super::*;
    use crate::state::realm_policies::NamespaceAccess;

    fn read_value(review: &Value) -> Result<Request, ReviewError> {
        read(review.to_string().as_bytes())
    }

    fn response(review: &Value) -> Value {
        let request = read_value(review).unwrap();
        let decision = match &request.pod {
            Ok(pod) => inject(
                pod,
                &request.namespace,
                &defaults(),
                &|_, _| NamespaceAccess::NotAllowed,
                &|_| Vec::new(),
            ),
            Err(refusal) => Decision::Refuse(refusal.clone()),
        };
        serde_json::from_str(&answer(&request.uid, &decision)).unwrap()
    }

    #[test]
    fn a_review_of_a_pod_is_answered_with_its_uid_a_patch_and_warnings() {
        let review = samples::review(&samples::pod());
        let answer = response(&review);
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        let response = &answer["response"];
        assert_eq!(response["uid"], review["request"]["uid"]);
        assert_eq!(response["allowed"], true);
        assert_eq!(response["patchType"], "JSONPatch");
        assert_eq!(response["warnings"].as_array().unwrap().len(), 1);
        let patch =
            data_encoding::BASE64.decode(response["patch"].as_str().unwrap().as_bytes()).unwrap();
        let _: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    }

    #[test]
    fn a_pod_whose_label_says_false_is_allowed_without_a_patch() {
        let mut pod = samples::pod();
        pod["metadata"]["labels"]["twofactor.fountainai.io/inject"] = "false".into();
        let answer = response(&samples::review(&pod));
        assert_eq!(answer["response"]["allowed"], true);
        assert!(answer["response"].get("patch").is_none());
        assert!(answer["response"].get("patchType").is_none());
    }

    #[test]
    fn a_refused_pod_is_answered_with_a_sentence() {
        let mut pod = samples::pod();
        pod["spec"]["hostNetwork"] = true.into();
        let answer = response(&samples::review(&pod));
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["status"]["code"], 422);
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert!(message.starts_with("spec.hostNetwork: must be false or absent"), "{message}");
    }

    #[test]
    fn the_namespace_and_the_name_are_those_of_the_request() {
        let mut pod = samples::pod();
        pod["metadata"]["namespace"] = "elsewhere".into();
        let mut review = samples::review(&pod);
        review["request"]["dryRun"] = true.into();
        review["request"]["name"] = "".into();
        let request = read_value(&review).unwrap();
        assert_eq!(
            (request.namespace.as_str(), request.name, request.dry_run),
            ("kms", None, true)
        );
    }

    #[test]
    fn a_review_of_ephemeral_containers_is_read() {
        let mut review = samples::review(&samples::pod());
        assert!(!read_value(&review).unwrap().is_debugging);
        review["request"]["operation"] = "UPDATE".into();
        review["request"]["subResource"] = "ephemeralcontainers".into();
        let request = read_value(&review).unwrap();
        assert!(request.is_debugging && request.pod.is_ok());
    }

    #[test]
    fn a_review_of_anything_but_the_creation_of_a_pod_is_refused_and_answered() {
        let changes: [(&str, Value); 8] = [
            ("kind", json!({"group": "apps", "version": "v1", "kind": "Deployment"})),
            ("kind", json!({"group": "", "version": "v2", "kind": "Pod"})),
            ("kind", json!({"group": "", "version": "v1", "kind": "Secret"})),
            ("subResource", "ephemeralcontainers".into()),
            ("operation", "UPDATE".into()),
            ("operation", Value::Null),
            ("object", Value::Null),
            ("object", json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": 7}})),
        ];
        for (field, value) in changes {
            let mut review = samples::review(&samples::pod());
            review["request"][field] = value;
            let response = response(&review)["response"].clone();
            assert_eq!(response["allowed"], false, "{field}");
            assert_eq!(response["uid"], review["request"]["uid"]);
            assert!(response["status"]["message"].as_str().unwrap().len() > 20);
        }
    }

    #[test]
    fn a_body_that_is_not_a_review_is_an_error() {
        let good = samples::review(&samples::pod());
        let mut no_uid = good.clone();
        no_uid["request"]["uid"] = "".into();
        let mut long_uid = good.clone();
        long_uid["request"]["uid"] = "u".repeat(129).into();
        let mut old = good.clone();
        old["apiVersion"] = "admission.k8s.io/v1beta1".into();
        let mut other = good.clone();
        other["kind"] = "ConversionReview".into();
        assert_eq!(read_value(&no_uid).unwrap_err(), ReviewError::Uid);
        assert_eq!(read_value(&long_uid).unwrap_err(), ReviewError::Uid);
        assert_eq!(read_value(&old).unwrap_err(), ReviewError::AnotherKind);
        assert_eq!(read_value(&other).unwrap_err(), ReviewError::AnotherKind);
        let answer = json!({"apiVersion": API_VERSION, "kind": KIND, "response": {"uid": "1"}});
        assert_eq!(read_value(&answer).unwrap_err(), ReviewError::NoRequest);
        let bodies = [
            "",
            "{",
            "null",
            "[]",
            "7",
            "\"x\"",
            "{}",
            "hello",
            "{\"apiVersion\": 1}",
            "\u{feff}{}",
        ];
        for body in bodies {
            assert!(matches!(read(body.as_bytes()), Err(ReviewError::Unreadable { .. })), "{body}");
        }
        assert!(matches!(read(&[0xff, 0xfe, 0x00]), Err(ReviewError::Unreadable { .. })));
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let depth = 500_000;
        let bomb =
            |open: &str, close: &str| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for bomb in [bomb("[", "]"), bomb("{\"a\":", "}")] {
            assert!(read(bomb.as_bytes()).is_err());
            let review = samples::review(&samples::pod()).to_string();
            // Among unknown fields of the request, in the object, and where the types hold free
            // JSON.
            let places = [
                review.replacen("\"request\":{", &format!("\"request\":{{\"x\":{bomb},"), 1),
                review.replacen("\"spec\":{", &format!("\"spec\":{{\"x\":{bomb},"), 1),
                review.replacen(
                    "\"metadata\":{",
                    &format!("\"metadata\":{{\"managedFields\":[{{\"fieldsV1\":{bomb}}}],"),
                    1,
                ),
            ];
            for body in places {
                assert!(body.len() > depth);
                // Any result is fine, because a stack overflow would abort the process.
                let _ = read(body.as_bytes());
            }
        }
    }
}
