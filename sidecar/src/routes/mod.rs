//! The API's routes. Enters: HTTP requests. Leaves: what the contract says, for every one of them.

mod body;
mod docs;
mod jwks;
mod openapi;
mod origin;

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, header};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use twofactor_core::realm::RealmRecord;
use twofactor_core::seal::Revision;
use utoipa::ToSchema;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::{Reply, Response};

use crate::audit::{self, Event, Origin};
use crate::delivery::rfc3339;
use crate::otp::generate::{self, Generated, Wish, count, deliver, generate};
use crate::otp::service::{Current, Service, within_bound};
use crate::otp::uniform::{self, Refused};
use crate::otp::verify::verify;
use crate::refusal::{Problem, Refusal};

/// The answer to `GET /`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Always the same sentence.
    #[schema(example = "2FA Service is up and running!")]
    pub status: &'static str,
}

/// Whom to make a code for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// The exact username, 1 to 253 characters.
    #[schema(example = "alice", min_length = 1, max_length = 253)]
    pub username: String,
    /// What the code is for, as the user reads it in the message: 1 to 140 printable characters.
    /// Verify then needs the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "transfer 100 to X", min_length = 1, max_length = 140, nullable = false)]
    pub context: Option<String>,
}

/// A code was delivered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct GenerateReply {
    /// The code; absent unless exposing it is switched on, for development.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "123456", pattern = "^[0-9]{6,8}$", nullable = false)]
    pub otp_code: Option<String>,
    /// Until when the code is accepted: RFC 3339, in UTC.
    #[schema(example = "2026-01-01T12:05:00Z", format = DateTime)]
    pub expires_at: String,
}

/// A code to check.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The exact username, 1 to 253 characters.
    #[schema(example = "alice", min_length = 1, max_length = 253)]
    pub username: String,
    /// The code as the user typed it: 6 to 8 ASCII digits, nothing else.
    #[schema(example = "123456", pattern = "^[0-9]{6,8}$")]
    pub otp_code: String,
    /// What the code was asked for, exactly as generate was given it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "transfer 100 to X", min_length = 1, max_length = 140, nullable = false)]
    pub context: Option<String>,
    /// Whom a token is wanted for: one of the realm's audiences. Without it there is no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "key-management", min_length = 1, max_length = 200, nullable = false)]
    pub audience: Option<String>,
}

/// The code was right, and is used up now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct VerifyReply {
    /// Always true; everything else is an error.
    #[schema(example = true)]
    pub success: bool,
    /// A signed JWT for the audience that was named, good for five minutes at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub token: Option<String>,
}

/// What is left of a request once its path is known.
struct Request {
    method: Method,
    query: String,
    headers: HeaderMap,
    body: Result<BytesMut, Refusal>,
}

/// All routes of the API. Where `loopback_only`, requests must name this machine as their host.
#[must_use]
pub fn routes(current: &Current, loopback_only: bool) -> BoxedFilter<(Response,)> {
    let current = current.clone();
    let with_service = warp::any().map(move || current.load());
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let request = warp::method()
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream().then(body::read))
        .map(|method, query, headers, body| Request { method, query, headers, body });
    let input = with_service.clone().and(request);
    let health =
        warp::path::end().and(with_service.clone()).and(warp::method()).then(health_route).boxed();
    let generate = warp::path!("auth" / "generate").and(input.clone()).then(generate_route).boxed();
    let verify = warp::path!("auth" / "verify").and(input).then(verify_route).boxed();
    let jwks = warp::path!(".well-known" / "jwks.json").and(with_service).and(warp::method());
    let jwks = jwks.then(jwks::jwks_route).boxed();
    let openapi = warp::path!("openapi.json").and(warp::method()).map(openapi_route).boxed();
    let docs =
        warp::path("docs").and(warp::path::tail()).and(warp::method()).map(docs_route).boxed();
    let nothing = warp::any().map(|| Refusal::NoSuchPath.into_response()).boxed();
    let api = verify
        .or(generate)
        .unify()
        .or(health)
        .unify()
        .or(openapi)
        .unify()
        .or(docs)
        .unify()
        .or(jwks)
        .unify();
    origin::foreign(loopback_only).or(api).unify().or(nothing).unify().boxed()
}

/// Whether the service runs. It says nothing about Redis: that is what the admin port's
/// `/readyz?verbose` is for.
#[utoipa::path(
    get, path = "/", tag = "Health Check", operation_id = "getHealthStatus", summary = "Is the service running?",
    responses(
        (status = 200, description = "It runs.", body = Status),
        (status = 403, description = "A web page from elsewhere asks.", body = Problem, content_type = "application/problem+json"),
        (status = 405, description = "Only GET is answered.", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn health_route(service: Arc<Service>, method: Method) -> Response {
    answer(&service, "/", async {
        require(&method, &Method::GET)?;
        Ok(json(&Status { status: "2FA Service is up and running!" }))
    })
    .await
}

/// Makes a one-time code, remembers it and delivers it to the user.
///
/// Limited: by default one a minute and ten an hour for a user. The username may stand in the query
/// or in a JSON body; prefer the body, since query strings end up in access logs.
///
/// With a `context`, such as `transfer 100 to X`, the user reads in the message what the code is
/// for, and the code is good for nothing else: verify needs the same context.
///
/// Where the realm has uniform answers, this answers 200 for every name, and delivers after the
/// answer.
#[utoipa::path(
    post, path = "/auth/generate", tag = "2FA Authentication", operation_id = "generateOtp", summary = "Deliver a code",
    params(("username" = Option<String>, Query, description = "The exact username, unless it is in the body.", min_length = 1, max_length = 253)),
    request_body(content = Option<GenerateRequest>, description = "The username, unless it is in the query, and what the code is for."),
    responses(
        (status = 200, description = "The code is on its way.", body = GenerateReply),
        (status = 400, description = "The user has no OTP secret, or no way to get a code.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "A web page from elsewhere asks.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such user, or 2FA is not enabled for them.", body = Problem, content_type = "application/problem+json"),
        (status = 405, description = "Only POST is answered.", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The request is malformed; `detail` names the field.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Asked too soon; a code that is in flight stays good.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
        (status = 502, description = "The mail or SMS provider did not take the message.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Redis is unreachable or has lost data that is being restored, or the realm does not allow this namespace.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
    )
)]
async fn generate_route(service: Arc<Service>, request: Request) -> Response {
    answer(&service, "/auth/generate", async {
        require(&request.method, &Method::POST)?;
        let wish = body::generate_request(&request.query, &request.headers, &request.body?)?;
        // As it was last read: whether that may still be believed is asked where the outcome is
        // logged.
        let known = service.records.known_realm();
        let realm = if known.is_some() { known } else { service.realm().await.ok() };
        if let Some(realm) = realm.filter(|realm| realm.1.uniform_answers) {
            let began = Instant::now();
            let reply = generate_uniformly(&service, realm, wish).await;
            uniform::until_the_beat(began).await;
            return Ok(json(&reply?));
        }
        let work = service.clone();
        let generated = to_its_end(&service, async move {
            let result = generate(&work, &wish).await;
            conclude_generate(&work, &wish, result.as_ref());
            result
        })
        .await?;
        let otp_code = service.expose_codes.then(|| generated.code.expose_secret().to_owned());
        Ok(json(&GenerateReply { otp_code, expires_at: rfc3339(generated.expires_at) }))
    })
    .await
}

/// Answers when it is decided and not when it is delivered, and says the same of every name.
async fn generate_uniformly(
    service: &Arc<Service>,
    realm: Arc<(Revision, RealmRecord)>,
    wish: Wish,
) -> Result<GenerateReply, Refusal> {
    // Of every name, or the lack of room would tell who is a user.
    let Some(room) = service.work.room() else {
        conclude_generate(service, &wish, Err(&Refusal::Unavailable));
        return Err(Refusal::Unavailable);
    };
    let (tell, told) = oneshot::channel();
    let work = service.clone();
    service.work.spawn(async move {
        let expires_at = uniform::expires_at(work.store.now(), realm.1.otp_lifetime);
        let decided = within_bound(uniform::issue(&work, &wish)).await;
        let reply = GenerateReply { otp_code: None, expires_at: rfc3339(expires_at) };
        let result = match decided {
            Err(Refused { refusal, .. }) if refusal.is_told_uniformly() => {
                conclude_generate(&work, &wish, Err(&refusal));
                let _ = tell.send(Err(refusal));
                return;
            }
            // A client that hung up changes nothing.
            decided => {
                let _ = tell.send(Ok(reply));
                decided
            }
        };
        let result = match result {
            Ok(issued) => match count(&work, issued, &wish).await {
                Ok(issued) => deliver(&work, issued, &wish).await,
                Err(refusal) => Err(refusal),
            },
            Err(Refused { refusal, aftermath }) => {
                if let Some((user, event)) = aftermath {
                    generate::conclude(&work, &user, &realm.1, &wish.origin, event).await;
                }
                Err(refusal)
            }
        };
        conclude_generate(&work, &wish, result.as_ref());
        drop(room);
    });
    told.await.unwrap_or(Err(Refusal::Internal))
}

fn conclude_generate(service: &Service, wish: &Wish, result: Result<&Generated, &Refusal>) {
    let outcome = result.map_or_else(Refusal::name, |_| "delivered");
    let channel = result.ok().map(|generated| generated.channel.name());
    conclude(service, "generate", outcome, wish.username.as_str(), channel, &wish.origin);
}

/// Accepts a code, once.
///
/// A code that was asked for with a `context` is accepted with exactly that context. With an
/// `audience`, where the realm gives tokens, the answer holds a signed token for it, to be checked
/// with the shared key or with `/.well-known/jwks.json`.
///
/// Where the realm has uniform answers, 400, 404 and 429 are answered like a wrong code, with 401.
#[utoipa::path(
    post, path = "/auth/verify", tag = "2FA Authentication", operation_id = "verifyOtp", summary = "Check a code",
    request_body = VerifyRequest,
    responses(
        (status = 200, description = "The code is right. It is used up now.", body = VerifyReply),
        (status = 400, description = "The code is used up, or was never issued to this caller.", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The code is wrong, or has expired.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "A web page from elsewhere asks.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such user, or 2FA is not enabled for them.", body = Problem, content_type = "application/problem+json"),
        (status = 405, description = "Only POST is answered.", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The request is malformed; `detail` names the field.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many failures; nothing was looked at.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
        (status = 503, description = "Redis is unreachable or has lost data that is being restored, or the realm does not allow this namespace.", body = Problem, content_type = "application/problem+json",
            headers(("Retry-After" = u64, description = "Seconds to wait."))),
    )
)]
async fn verify_route(service: Arc<Service>, request: Request) -> Response {
    answer(&service, "/auth/verify", async {
        require(&request.method, &Method::POST)?;
        let claim = body::verify_request(&request.headers, &request.body?)?;
        let (work, began) = (service.clone(), Instant::now());
        let result = to_its_end(&service, async move {
            let result = verify(&work, &claim).await;
            let outcome = result.as_ref().map_or_else(Refusal::name, |_| "accepted");
            conclude(&work, "verify", outcome, claim.username.as_str(), None, &claim.origin);
            result.map_err(|refusal| told(&work, refusal))
        })
        .await;
        if is_uniform(&service) {
            uniform::until_the_beat(began).await;
        }
        Ok(json(&VerifyReply { success: true, token: result? }))
    })
    .await
}

/// What the caller of verify is told.
fn told(service: &Service, refusal: Refusal) -> Refusal {
    if is_uniform(service) && !refusal.is_told_uniformly() { Refusal::WrongCode } else { refusal }
}

fn is_uniform(service: &Service) -> bool {
    service.records.known_realm().is_some_and(|realm| realm.1.uniform_answers)
}

#[expect(clippy::needless_pass_by_value, reason = "warp hands over what its filters extract")]
fn openapi_route(method: Method) -> Response {
    require(&method, &Method::GET).map_or_else(Refusal::into_response, |()| openapi::document())
}

#[expect(clippy::needless_pass_by_value, reason = "warp hands over what its filters extract")]
fn docs_route(path: warp::path::Tail, method: Method) -> Response {
    require(&method, &Method::GET)
        .and_then(|()| docs::file(path.as_str()))
        .unwrap_or_else(Refusal::into_response)
}

fn require(method: &Method, expected: &Method) -> Result<(), Refusal> {
    let allowed = if expected == Method::GET { "GET" } else { "POST" };
    let fits = method == expected || (expected == Method::GET && method == Method::HEAD);
    if fits { Ok(()) } else { Err(Refusal::WrongMethod(allowed)) }
}

fn json(reply: &impl Serialize) -> Response {
    let mut response = warp::reply::json(reply).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Work that goes on when the client hangs up: a decision that was made is in the log and in the
/// metrics.
async fn to_its_end<T: Send + 'static>(
    service: &Service,
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    service.work.spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a request ended in the middle");
        Err(Refusal::Internal)
    })
}

/// Runs a route, turns its refusal into an answer, and counts it.
async fn answer(
    service: &Service,
    route: &'static str,
    work: impl Future<Output = Result<Response, Refusal>>,
) -> Response {
    let began = Instant::now();
    let response = work.await.unwrap_or_else(Refusal::into_response);
    service.metrics.request(route, response.status(), began.elapsed());
    response
}

fn conclude(
    service: &Service,
    operation: &'static str,
    outcome: &'static str,
    username: &str,
    channel: Option<&'static str>,
    origin: &Origin,
) {
    service.metrics.decision(operation, outcome);
    // Where the realm is not known, nobody has asked for less.
    let nothing = Origin::default();
    let kept = service.records.known_realm().is_none_or(|realm| realm.1.audit.origin);
    let origin = if kept { origin } else { &nothing };
    audit::record(&Event {
        operation,
        outcome,
        username,
        channel,
        caller: &service.caller,
        origin,
    });
}
