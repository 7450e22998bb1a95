//! Serves a page to read and try the API, which works without the internet because Swagger UI is
//! part of the binary.

use std::sync::{Arc, LazyLock};

use http::{HeaderValue, Method, header};
use utoipa_swagger_ui::Config;
use warp::reply::{Reply, Response};

use super::reply::require;
use crate::refusal::Refusal;

/// The page. Its files have absolute paths, so that it works at `/docs` as well as at `/docs/`.
const PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>FountainAI 2FA Service</title>
  <link rel="stylesheet" href="/docs/swagger-ui.css">
  <link rel="icon" href="/docs/favicon-32x32.png">
</head>
<body>
  <div id="swagger-ui"></div>
  <noscript>This page needs JavaScript. The description itself is at <a href="/openapi.json">/openapi.json</a>.</noscript>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"#;

const START: &str = r##"window.ui = SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
"##;

/// Allows neither content from elsewhere nor requests to elsewhere. Inline styles and images are
/// allowed because Swagger UI uses them.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";

static CONFIGURATION: LazyLock<Arc<Config<'static>>> =
    LazyLock::new(|| Arc::new(Config::from("/openapi.json")));

pub(super) fn docs_route(path: &str, method: &Method) -> Response {
    require(method, &Method::GET).and_then(|()| file(path)).unwrap_or_else(Refusal::into_response)
}

/// Returns a file of the page.
fn file(path: &str) -> Result<Response, Refusal> {
    match path {
        "" => Ok(reply(PAGE, "text/html; charset=utf-8")),
        "start.js" => Ok(reply(START, "text/javascript; charset=utf-8")),
        _ => match utoipa_swagger_ui::serve(path, CONFIGURATION.clone()) {
            Ok(Some(file)) => Ok(reply(file.bytes.into_owned(), &file.content_type)),
            Ok(None) => Err(Refusal::NoSuchPath),
            Err(error) => {
                tracing::error!(%error, "failed to read a file of the documentation page");
                Err(Refusal::Internal)
            }
        },
    }
}

fn reply(content: impl Reply, content_type: &str) -> Response {
    let mut response = content.into_response();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers
        .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
