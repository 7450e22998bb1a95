//! Refuses web pages from elsewhere, by the headers `Host` and `Origin`.
//!
//! The API has no authentication, because only processes of the pod or machine reach it. A browser
//! on that machine is such a process, and sends requests on behalf of any page that it shows. Such
//! a request can be recognized: the page's `Origin` is not the address of this API, or, if the
//! page's own host name was made to resolve to this machine (DNS rebinding), the `Host` is that
//! name.

use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue};

/// Whether a request is that of a web page from elsewhere.
pub(super) fn is_foreign(headers: &HeaderMap, loopback_only: bool) -> bool {
    !is_host_ours(headers.get(HOST), loopback_only) || !is_origin_ours(headers)
}

fn is_host_ours(host: Option<&HeaderValue>, loopback_only: bool) -> bool {
    // Only HTTP/1.0 has requests without this header, and no browser uses it.
    let Some(host) = host else { return true };
    let Some(authority) = host.to_str().ok().and_then(|text| text.parse::<Authority>().ok()) else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let loopback = name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    loopback || !loopback_only
}

/// Programs send no `Origin`; the page at `/docs` sends the address of this API.
fn is_origin_ours(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_ascii_lowercase);
    let authority = text(origin)
        .and_then(|origin| origin.split_once("://").map(|(_, authority)| authority.to_owned()));
    authority.is_some() && authority == headers.get(HOST).and_then(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ours(headers: &[(&'static str, &str)], loopback_only: bool) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        is_host_ours(headers.get(HOST), loopback_only) && is_origin_ours(&headers)
    }

    #[test]
    fn programs_on_this_machine_are_answered() {
        for host in ["127.0.0.1:8004", "localhost:8004", "LOCALHOST", "[::1]:8004", "127.1.2.3"] {
            assert!(is_ours(&[("host", host)], true), "{host}");
            assert!(
                is_ours(&[("host", host), ("origin", &format!("http://{host}"))], true),
                "{host}"
            );
        }
        assert!(is_ours(&[], true));
        assert!(is_ours(&[("host", "twofactor.internal:8004")], false));
    }

    #[test]
    fn web_pages_from_elsewhere_are_refused() {
        for headers in [
            &[("host", "rebound.example:8004")][..],
            &[("host", "localhost.example:8004")],
            &[("host", "127.0.0.1:8004"), ("origin", "https://example.org")],
            &[("host", "127.0.0.1:8004"), ("origin", "http://127.0.0.1:3000")],
            &[("host", "127.0.0.1:8004"), ("origin", "null")],
        ] {
            assert!(!is_ours(headers, true), "{headers:?}");
        }
        let page = [("host", "twofactor.internal:8004"), ("origin", "https://example.org")];
        assert!(!is_ours(&page, false));
    }
}
