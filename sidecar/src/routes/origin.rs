//! Refuses requests for another host, and web pages from elsewhere, by the headers `Host` and
//! `Origin`.
//!
//! The API has no authentication, because only processes of the pod or machine reach it. A browser
//! on that machine is such a process, and sends requests on behalf of any page that it shows. Such
//! a request can be recognized: the page's `Origin` is not the address of this API, or, if the
//! page's own host name was made to resolve to this machine (DNS rebinding), the `Host` is that
//! name.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use twofactor_core::host;

use crate::refusal::Refusal;

/// A name under which clients may reach the API, beside the loopback addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// Reason why a text is not the name of a host.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be a host name such as twofactor or twofactor.internal, without port or *")]
pub struct HostNameError;

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        host::to_ascii(text).map(|name| Self(relative(&name).to_owned())).ok_or(HostNameError)
    }
}

/// What the header `Host` names.
#[derive(Debug, PartialEq, Eq)]
enum Host<'a> {
    Address(IpAddr),
    Name(&'a str),
}

impl<'a> Host<'a> {
    /// Parses a header (RFC 9110 §7.2), or returns `None` if it is invalid.
    fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            (Self::Address(address.parse::<Ipv6Addr>().ok()?.into()), port)
        } else {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.is_empty() || !name.bytes().all(allowed) {
                return None;
            }
            (name.parse().map_or(Self::Name(relative(name)), Self::Address), port)
        };
        let is_port = |port: &str| {
            let digits = port.strip_prefix(':');
            digits.is_some_and(|digits| {
                digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok()
            })
        };
        (port.is_empty() || is_port(port)).then_some(host)
    }

    /// Whether it names this API. A page can give itself any name, but no address.
    fn is_ours(&self, loopback_only: bool, allowed: &[HostName]) -> bool {
        match self {
            Self::Address(address) => address.is_loopback() || !loopback_only,
            Self::Name(name) => {
                name.eq_ignore_ascii_case("localhost")
                    || allowed.iter().any(|allowed| name.eq_ignore_ascii_case(&allowed.0))
            }
        }
    }
}

/// Returns a name without the dot that ends an absolute one.
fn relative(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Refuses a request that does not name this API as its host, or that is of a web page from
/// elsewhere. `version` is that of HTTP, where it is not 1.1.
pub(super) fn check(
    headers: &HeaderMap,
    version: Option<Version>,
    loopback_only: bool,
    allowed: &[HostName],
) -> Result<(), Refusal> {
    let host = match only(headers, HOST) {
        Ok(Some(host)) => host,
        // The header came with HTTP/1.1, and no browser uses HTTP/1.0.
        Ok(None) if version == Some(Version::HTTP_10) => {
            return is_origin_ours(headers, None).then_some(()).ok_or(Refusal::ForeignOrigin);
        }
        Ok(None) | Err(Several) => return Err(Refusal::InvalidHost),
    };
    let text = host.to_str().ok();
    let parsed = text.and_then(Host::parse).ok_or(Refusal::InvalidHost)?;
    let ours = parsed.is_ours(loopback_only, allowed) && is_origin_ours(headers, text);
    if ours { Ok(()) } else { Err(Refusal::ForeignOrigin) }
}

/// A header that may stand only once has several values.
struct Several;

fn only(headers: &HeaderMap, name: HeaderName) -> Result<Option<&HeaderValue>, Several> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Several) } else { Ok(first) }
}

/// Programs send no `Origin`; the page at `/docs` sends the address of this API.
fn is_origin_ours(headers: &HeaderMap, host: Option<&str>) -> bool {
    match only(headers, ORIGIN) {
        Ok(None) => true,
        Ok(Some(origin)) => {
            let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            matches!((authority, host), (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host))
        }
        Err(Several) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(headers: &[(&'static str, &str)], loopback_only: bool) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let allowed = ["twofactor".parse().unwrap(), "Bücher.example.".parse().unwrap()];
        match check(&map, None, loopback_only, &allowed) {
            Ok(()) => 200,
            Err(refusal) => refusal.into_response().status().as_u16(),
        }
    }

    #[test]
    fn programs_on_this_machine_are_answered() {
        for host in [
            "127.0.0.1:8004",
            "localhost:8004",
            "LOCALHOST",
            "localhost.",
            "[::1]:8004",
            "[::1]",
            "127.1.2.3",
            "Twofactor:8004",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(answer(&[("host", host)], true), 200, "{host}");
            let page = [("host", host), ("origin", &format!("HTTP://{host}"))];
            assert_eq!(answer(&page, true), 200, "{host}");
        }
        assert_eq!(answer(&[("host", "10.1.2.3:8004")], false), 200);
        assert_eq!(answer(&[("host", "[fd00::1]:8004")], false), 200);
    }

    #[test]
    fn web_pages_and_other_hosts_are_refused() {
        for loopback_only in [true, false] {
            for headers in [
                &[("host", "rebound.example:8004")][..],
                &[("host", "localhost.example:8004")],
                &[("host", "twofactor.example")],
                &[("host", "127.1")],
                &[("host", "127.0.0.1:8004"), ("origin", "https://example.org")],
                &[("host", "127.0.0.1:8004"), ("origin", "http://127.0.0.1:3000")],
                &[("host", "127.0.0.1:8004"), ("origin", "null")],
                &[("host", "127.0.0.1"), ("origin", "http://127.0.0.1"), ("origin", "http://x")],
            ] {
                assert_eq!(answer(headers, loopback_only), 403, "{headers:?}");
            }
        }
        for host in ["10.1.2.3:8004", "0.0.0.0", "[::]", "[::ffff:10.1.2.3]"] {
            assert_eq!(answer(&[("host", host)], true), 403, "{host}");
        }
    }

    #[test]
    fn a_request_needs_one_valid_host() {
        assert_eq!(answer(&[], true), 400);
        assert_eq!(answer(&[("host", "localhost"), ("host", "localhost")], true), 400);
        for host in [
            "",
            " ",
            ":8004",
            "localhost:",
            "localhost:x",
            "localhost:65536",
            "localhost:+80",
            "localhost:8004:8004",
            "user@localhost",
            "localhost/",
            "localhost, evil.example",
            "http://localhost",
            "local host",
            "::1",
            "[::1",
            "[::1]x",
            "[127.0.0.1]",
            "[localhost]",
            "[::1%25eth0]",
            "localhöst",
            "*",
        ] {
            assert_eq!(answer(&[("host", host)], true), 400, "{host}");
        }
    }

    #[test]
    fn only_http_1_0_needs_no_host() {
        let empty = HeaderMap::new();
        assert!(check(&empty, Some(Version::HTTP_10), true, &[]).is_ok());
        assert!(check(&empty, None, true, &[]).is_err());
        let page = [(ORIGIN, HeaderValue::from_static("http://127.0.0.1"))].into_iter().collect();
        assert!(check(&page, Some(Version::HTTP_10), true, &[]).is_err());
    }

    #[test]
    fn no_other_text_is_the_name_of_a_host() {
        for text in ["", "*", "*.example", "a b", "a:80", "127.0.0.1", "[::1]", "a/b"] {
            assert_eq!(text.parse::<HostName>(), Err(HostNameError), "{text}");
        }
    }
}
