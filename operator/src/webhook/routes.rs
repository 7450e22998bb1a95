//! Serves `POST /inject`. Every request gets an answer, a log line and a count in the metrics.
//!
//! Of a pod, the log line contains the name, the owner's name and the realm. Nothing else of a pod
//! is ever logged.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Semaphore;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

use super::defaults::SidecarDefaults;
use super::metrics::AdmissionMetrics;
use super::pod::{Decision, debug, inject};
use super::reason::{Reason, Verdict};
use super::review::{self, Request, ReviewError};
use super::{AccessLookup, LimitLookup};

/// Maximum size of a body in bytes: the largest object that an API server accepts, and the review
/// around it.
pub const LARGEST_BODY: usize = 3 * 1024 * 1024 + 64 * 1024;
/// Size in bytes that few pods exceed.
const USUAL_BODY: usize = 256 * 1024;
/// Maximum number of bodies larger than usual at the same time. Every process in the cluster can
/// send them, and memory is limited.
const LARGE_BODIES: usize = 8;
/// Timeout for the arrival of a body. An API server waits 10 s for the answer by default.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length of an object's name.
const LONGEST_NAME: usize = 253;

struct Webhook {
    defaults: Arc<SidecarDefaults>,
    access: AccessLookup,
    limits: LimitLookup,
    metrics: AdmissionMetrics,
    large_bodies: Semaphore,
}

/// Errors of a request that gets no decision.
enum Failure {
    Method,
    ContentType,
    TooLarge,
    BrokenOff(StatusCode, &'static str),
    NotAReview(ReviewError),
}

/// Builds the webhook's routes.
#[must_use]
pub fn routes(
    defaults: Arc<SidecarDefaults>,
    access: AccessLookup,
    limits: LimitLookup,
    metrics: AdmissionMetrics,
) -> BoxedFilter<(Response,)> {
    let webhook = Arc::new(Webhook {
        defaults,
        access,
        limits,
        metrics,
        large_bodies: Semaphore::new(LARGE_BODIES),
    });
    warp::path!("inject")
        .and(warp::any().map(move || webhook.clone()))
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|webhook: Arc<Webhook>, method: Method, headers: HeaderMap, body| async move {
            let start = Instant::now();
            let (reason, response) = webhook.respond(&method, &headers, body).await;
            webhook.metrics.decided(reason, start.elapsed());
            response
        })
        .boxed()
}

impl Webhook {
    async fn respond(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> (Reason, Response) {
        match self.request(method, headers, body).await {
            Ok(request) => {
                let decision = self.decide(&request);
                log(&request, &decision);
                let answer = review::answer(&request.uid, &decision);
                let json = HeaderValue::from_static("application/json");
                (
                    decision.reason(),
                    warp::reply::with_header(answer, header::CONTENT_TYPE, json).into_response(),
                )
            }
            Err(failure) => {
                let reason = failure.reason();
                tracing::warn!(
                    decision = reason.verdict().name(),
                    reason = reason.name(),
                    "admission"
                );
                (reason, failure.into_response())
            }
        }
    }

    fn decide(&self, request: &Request) -> Decision {
        match &request.pod {
            Ok(pod) if request.is_debugging => debug(pod, &request.namespace, &*self.access),
            Ok(pod) => {
                let (access, limits) = (&*self.access, &*self.limits);
                inject(pod, &request.namespace, &self.defaults, access, limits)
            }
            Err(refusal) => Decision::Refuse(refusal.clone()),
        }
    }

    async fn request(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Request, Failure> {
        if method != Method::POST {
            return Err(Failure::Method);
        }
        if !is_json(headers) {
            return Err(Failure::ContentType);
        }
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > LARGEST_BODY as u64) {
            return Err(Failure::TooLarge);
        }
        let late =
            Failure::BrokenOff(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
        let read = async {
            let mut body = pin!(body);
            let mut bytes = BytesMut::new();
            let mut permit = None;
            while let Some(part) = body.next().await {
                let part = part.map_err(|_| {
                    Failure::BrokenOff(StatusCode::BAD_REQUEST, "the body ended early")
                })?;
                let length = bytes.len() + part.remaining();
                if length > LARGEST_BODY {
                    return Err(Failure::TooLarge);
                }
                if length > USUAL_BODY && permit.is_none() {
                    permit = self.large_bodies.acquire().await.ok();
                }
                bytes.put(part);
            }
            review::read(&bytes).map_err(Failure::NotAReview)
        };
        tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or(Err(late))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

impl Failure {
    const fn reason(&self) -> Reason {
        match self {
            Self::Method => Reason::Method,
            Self::ContentType => Reason::ContentType,
            Self::TooLarge => Reason::TooLarge,
            Self::BrokenOff(..) => Reason::BrokenOff,
            Self::NotAReview(_) => Reason::NotAReview,
        }
    }

    fn into_response(self) -> Response {
        let (status, sentence) = match self {
            Self::Method => {
                let answer = "only POST is answered\n";
                let response = warp::reply::with_status(answer, StatusCode::METHOD_NOT_ALLOWED);
                return warp::reply::with_header(response, header::ALLOW, "POST").into_response();
            }
            Self::ContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Content-Type: must be application/json".to_owned(),
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body must not be larger than {LARGEST_BODY} bytes"),
            ),
            Self::BrokenOff(status, sentence) => (status, sentence.to_owned()),
            Self::NotAReview(error) => (StatusCode::BAD_REQUEST, error.to_string()),
        };
        warp::reply::with_status(format!("{sentence}\n"), status).into_response()
    }
}

fn log(request: &Request, decision: &Decision) {
    // `tracing` takes the level as a constant only, so this expands the same line for each level.
    macro_rules! line {
        ($level:ident, $reason:ident, $pod:ident) => {
            tracing::$level!(
                namespace = name_in_log(&request.namespace),
                pod = name_in_log(pod_name(request, $pod)),
                owner = $pod.map(owner).unwrap_or_default(),
                decision = $reason.verdict().name(),
                reason = $reason.name(),
                realm = decision.realm().unwrap_or_default(),
                dry_run = request.dry_run,
                "admission"
            )
        };
    }
    let (reason, pod) = (decision.reason(), request.pod.as_deref().ok());
    if reason.verdict() == Verdict::Refuse {
        line!(warn, reason, pod);
    } else {
        line!(info, reason, pod);
    }
}

fn pod_name<'a>(request: &'a Request, pod: Option<&'a Pod>) -> &'a str {
    let metadata = pod.map(|pod| &pod.metadata);
    request
        .name
        .as_deref()
        .or_else(|| metadata?.name.as_deref())
        .or_else(|| metadata?.generate_name.as_deref())
        .unwrap_or_default()
}

fn owner(pod: &Pod) -> String {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners
        .find(|owner| owner.controller == Some(true))
        .map(|owner| format!("{}/{}", name_in_log(&owner.kind), name_in_log(&owner.name)))
        .unwrap_or_default()
}

/// Makes a name safe for a log line. The API server has not validated it yet, so it can be any
/// text.
fn name_in_log(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.chars().take(LONGEST_NAME).map(|c| if allowed(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};
    use serde_json::{Value, json};
    use twofactor_server::metrics::Registrar;
    use warp::test::RequestBuilder;

    use super::super::samples::{self, defaults};
    use super::*;
    use crate::state::realm_policies::NamespaceAccess;

    struct Served {
        routes: BoxedFilter<(Response,)>,
        registry: Registry,
    }

    fn served() -> Served {
        let mut registrar = Registrar::default();
        let metrics = AdmissionMetrics::new(&mut registrar).unwrap();
        let access: AccessLookup = Arc::new(|realm, namespace| {
            if realm == namespace { NamespaceAccess::Allowed } else { NamespaceAccess::NotAllowed }
        });
        let registry = registrar.registry();
        Served {
            routes: routes(Arc::new(defaults()), access, Arc::new(|_| Vec::new()), metrics),
            registry,
        }
    }

    fn post(body: impl AsRef<[u8]>) -> RequestBuilder {
        warp::test::request()
            .method("POST")
            .path("/inject?timeout=10s")
            .header("content-type", "application/json")
            .body(body)
    }

    impl Served {
        async fn status(&self, request: RequestBuilder) -> u16 {
            request.reply(&self.routes).await.status().as_u16()
        }

        fn counted(&self, decision: &str, reason: &str) -> bool {
            let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
            let line = format!(
                "twofactor_admission_total{{decision=\"{decision}\",reason=\"{reason}\"}} 1\n"
            );
            text.contains(&line)
        }
    }

    #[tokio::test]
    async fn an_injected_pod_is_answered_and_counted() {
        let served = served();
        let review = samples::review(&samples::pod()).to_string();
        let reply = post(review).reply(&served.routes).await;
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["content-type"], "application/json");
        let answer: Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(answer["response"]["allowed"], true);
        assert!(served.counted("inject", "allowed"));
        assert!(!served.counted("refuse", "port_taken"));
        let text = TextEncoder::new().encode_to_string(&served.registry.gather()).unwrap();
        assert!(
            text.contains(
                "twofactor_admission_total{decision=\"refuse\",reason=\"port_taken\"} 0\n"
            )
        );
        assert!(text.contains("twofactor_admission_seconds_bucket{le=\"0.0001\"}"));
        assert!(text.contains("twofactor_admission_seconds_count 1\n"));
    }

    #[tokio::test]
    async fn a_request_that_is_not_a_review_is_refused_with_its_own_status_and_counted() {
        let served = served();
        let get = warp::test::request().method("GET").path("/inject");
        assert_eq!(served.status(get).await, 405);
        assert!(served.counted("invalid", "method"));
        let text = warp::test::request()
            .method("POST")
            .path("/inject")
            .header("content-type", "text/plain");
        assert_eq!(served.status(text.body("{}")).await, 415);
        assert!(served.counted("invalid", "content_type"));
        assert_eq!(served.status(post("not json")).await, 400);
        assert!(served.counted("invalid", "not_a_review"));
        assert_eq!(served.status(post(vec![b' '; LARGEST_BODY + 1])).await, 413);
        assert!(served.counted("invalid", "too_large"));
        let elsewhere = warp::test::request().method("POST").path("/other");
        assert_eq!(served.status(elsewhere).await, 404);
    }

    #[tokio::test]
    async fn a_body_without_a_declared_length_is_not_read_beyond_the_limit() {
        let mut sent = 0_usize;
        let endless = futures_util::stream::repeat_with(|| {
            sent += 1;
            Ok::<_, warp::Error>(bytes::Bytes::from_static(&[b'['; 1024]))
        });
        let webhook = Webhook {
            defaults: Arc::new(defaults()),
            access: Arc::new(|_, _| NamespaceAccess::Allowed),
            limits: Arc::new(|_| Vec::new()),
            metrics: AdmissionMetrics::new(&mut Registrar::default()).unwrap(),
            large_bodies: Semaphore::new(LARGE_BODIES),
        };
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        let (reason, response) = webhook.respond(&Method::POST, &headers, endless).await;
        assert_eq!((reason, response.status()), (Reason::TooLarge, StatusCode::PAYLOAD_TOO_LARGE));
        assert!(sent <= LARGEST_BODY / 1024 + 1, "{sent}");
    }

    #[tokio::test]
    async fn a_large_pod_within_the_limit_is_injected() {
        let served = served();
        let mut pod = samples::pod();
        pod["metadata"]["annotations"] = json!({"large": "x".repeat(3 * 1024 * 1024)});
        assert_eq!(served.status(post(samples::review(&pod).to_string())).await, 200);
        assert!(served.counted("inject", "allowed"));
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Answers the reviews and returns the log lines about them, one for each.
    async fn logged(reviews: &[Value]) -> Vec<Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        // A line that a thread without a subscriber reaches for the first time may stay silent for
        // all. So each thread has one, and the lines are reached once before they are recorded.
        tracing::subscriber::set_global_default(tracing_subscriber::registry()).ok();
        for review in reviews {
            post(review.to_string()).reply(&served().routes).await;
        }
        let guard = tracing::subscriber::set_default(subscriber);
        let served = served();
        for review in reviews {
            post(review.to_string()).reply(&served.routes).await;
        }
        drop(guard);
        let bytes = lines.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["message"] == "admission").collect()
    }

    #[tokio::test]
    async fn every_decision_is_one_log_line_with_names_and_nothing_else_of_the_pod() {
        let mut pod = samples::pod();
        pod["metadata"]["annotations"] = json!({"note": "hush-annotation"});
        pod["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "v1", "kind": "Other", "name": "other", "uid": "1"},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "kms-7d9c", "uid": "2", "controller": true},
        ]);
        pod["spec"]["containers"][0]["env"] = json!([{"name": "PASSWORD", "value": "hush-value"}]);
        pod["spec"]["containers"][0]["image"] = "hush-image".into();
        let injected = samples::review(&pod);
        let mut dry = injected.clone();
        dry["request"]["dryRun"] = true.into();
        dry["request"]["name"] = "kms-1".into();
        pod["metadata"]["labels"]["twofactor.fountainai.io/inject"] = "hush-label".into();
        let refused = samples::review(&pod);
        let mut unreadable = injected.clone();
        unreadable["request"]["object"]["spec"]["containers"] = "hush-containers".into();
        let no_review = json!({"apiVersion": "hush-version"});

        let lines = logged(&[injected, dry, refused, unreadable, no_review]).await;

        assert_eq!(lines.len(), 5, "{lines:?}");
        let seen: Vec<_> =
            lines.iter().map(|line| (line["decision"].clone(), line["reason"].clone())).collect();
        let expected = [
            ("inject", "allowed"),
            ("inject", "allowed"),
            ("refuse", "label"),
            ("refuse", "unreadable_pod"),
            ("invalid", "not_a_review"),
        ];
        assert_eq!(seen, expected.map(|(decision, reason)| (decision.into(), reason.into())));
        assert_eq!(lines[0]["namespace"], "kms");
        assert_eq!(lines[0]["pod"], "kms-");
        assert_eq!(lines[0]["owner"], "ReplicaSet/kms-7d9c");
        assert_eq!(lines[0]["realm"], "kms");
        assert_eq!(lines[0]["dry_run"], false);
        assert_eq!((&lines[1]["pod"], &lines[1]["dry_run"]), (&"kms-1".into(), &true.into()));
        let text = Value::from(lines).to_string();
        assert!(!text.contains("hush") && !text.contains("PASSWORD"), "{text}");
    }

    #[test]
    fn a_name_in_the_log_is_short_and_has_no_control_characters() {
        assert_eq!(name_in_log("kms-7d9c.x_Y"), "kms-7d9c.x_Y");
        assert_eq!(name_in_log("a\nINFO fake=\u{1b}[31m\""), "a?INFO?fake???31m?");
        assert_eq!(name_in_log(&"a".repeat(1000)).len(), LONGEST_NAME);
    }
}
