//! Reads from headers who the end user is: the address in `X-Forwarded-For` or `Forwarded`
//! (RFC 7239), and `User-Agent`.
//!
//! A client can send these headers itself, and each proxy appends what it saw to the first two. So
//! only what trusted proxies wrote, at the right end, is true: the end user's address is the last
//! one that is not a trusted proxy's.

use std::fmt::Write;

use http::{HeaderMap, HeaderValue, header};

use crate::audit::Origin;

/// Maximum length of a text from a header, in characters.
const LONGEST: usize = 200;
/// The end of a text that was longer.
const CUT: &str = "...";

/// Returns what the headers say about the end user. `trusted_proxies` is the number of addresses at
/// the right end that are those of proxies.
pub(super) fn origin(headers: &HeaderMap, trusted_proxies: u8) -> Origin {
    let address = forwarded_for(headers, trusted_proxies)
        .map(|address| kept(&[address]))
        .or_else(|| forwarded(headers, trusted_proxies).map(|address| kept(&[&address])));
    let programs: Vec<_> =
        headers.get_all(header::USER_AGENT).iter().map(HeaderValue::as_bytes).collect();
    Origin { address: address.flatten(), user_agent: kept(&programs) }
}

/// Returns the entry of a list beside `trusted` others at its right end, or else the first one. The
/// list is read from its end.
fn last_untrusted<T>(from_end: impl Iterator<Item = T>, trusted: u8) -> Option<T> {
    from_end.take(usize::from(trusted) + 1).last()
}

fn forwarded_for(headers: &HeaderMap, trusted_proxies: u8) -> Option<&[u8]> {
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let entries = entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty());
    last_untrusted(entries, trusted_proxies)
}

fn forwarded(headers: &HeaderMap, trusted_proxies: u8) -> Option<Vec<u8>> {
    let lines = headers.get_all(header::FORWARDED).iter().rev();
    let elements = lines.flat_map(|line| split(line.as_bytes(), b',').into_iter().rev());
    let elements = elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty());
    let element = last_untrusted(elements, trusted_proxies)?;
    let node = split(element, b';').into_iter().find_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        name.eq_ignore_ascii_case(b"for").then(|| unquoted(value))
    });
    // A proxy need not name its client, but what it says is kept.
    Some(node.unwrap_or_else(|| element.to_owned()))
}

/// Splits a text at a separator outside of quoted strings (RFC 9110 §5.6.4).
fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(|&byte| {
        let separates = byte == separator && !quoted;
        if byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && byte == b'\\' && !escaped;
        separates
    });
    parts.collect()
}

fn unquoted(value: &[u8]) -> Vec<u8> {
    let Some(inside) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return value.to_owned();
    };
    let mut escaped = false;
    let is_content = |byte: &u8| {
        escaped = *byte == b'\\' && !escaped;
        !escaped
    };
    inside.iter().copied().filter(is_content).collect()
}

/// Returns the values of a header as a text of printable ASCII characters, in which other bytes
/// stand as `\xNN`. What is cut ends with dots.
fn kept(values: &[&[u8]]) -> Option<String> {
    let mut text = String::new();
    for value in values.iter().map(|value| value.trim_ascii()).filter(|value| !value.is_empty()) {
        if !text.is_empty() {
            text.push_str(", ");
        }
        for &byte in value.iter().take(LONGEST + 1) {
            match byte {
                b' '..=b'~' => text.push(char::from(byte)),
                _ => {
                    let _ = write!(text, "\\x{byte:02x}");
                }
            }
        }
    }
    if text.len() > LONGEST {
        text.truncate(LONGEST - CUT.len());
        text.push_str(CUT);
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(headers: &[(&'static str, &str)], trusted_proxies: u8) -> Origin {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        origin(&map, trusted_proxies)
    }

    fn address(headers: &[(&'static str, &str)], trusted_proxies: u8) -> Option<String> {
        read(headers, trusted_proxies).address
    }

    #[test]
    fn the_last_address_that_is_not_a_trusted_proxy_is_that_of_the_end_user() {
        let lines =
            [("x-forwarded-for", "forged, 203.0.113.7 "), ("x-forwarded-for", "10.0.0.2,10.0.0.1")];
        for (trusted, expected) in
            [(0, "10.0.0.1"), (1, "10.0.0.2"), (2, "203.0.113.7"), (3, "forged"), (9, "forged")]
        {
            assert_eq!(address(&lines, trusted).as_deref(), Some(expected), "{trusted}");
        }
        assert_eq!(
            address(&[("x-forwarded-for", " , ,203.0.113.7,, ")], 0).unwrap(),
            "203.0.113.7"
        );
        assert_eq!(address(&[("x-forwarded-for", ",")], 0), None);
        assert_eq!(address(&[], 3), None);
    }

    #[test]
    fn an_address_is_read_from_the_standard_header_too() {
        let lines = [
            ("forwarded", "for=forged, proto=https;For=\"[2001:db8::1]:4711\""),
            ("forwarded", "for=10.0.0.1;by=\"a,b;c\\\",for=quoted\""),
        ];
        for (trusted, expected) in [(0, "10.0.0.1"), (1, "[2001:db8::1]:4711"), (2, "forged")] {
            assert_eq!(address(&lines, trusted).as_deref(), Some(expected), "{trusted}");
        }
        assert_eq!(address(&[("forwarded", "for=_hidden")], 0).unwrap(), "_hidden");
        assert_eq!(address(&[("forwarded", "proto=https")], 0).unwrap(), "proto=https");
        assert_eq!(address(&[("forwarded", "for=\"a\\\"b\"")], 0).unwrap(), "a\"b");
        let both = [("forwarded", "for=a"), ("x-forwarded-for", "b")];
        assert_eq!(address(&both, 0).unwrap(), "b");
    }

    #[test]
    fn what_is_not_printable_is_kept_in_another_form() {
        let headers = [("x-forwarded-for", "ä\tb\\"), ("user-agent", "Käse/1 \u{202e}")];
        let origin = read(&headers, 0);
        assert_eq!(origin.address.unwrap(), r"\xc3\xa4\x09b\");
        assert_eq!(origin.user_agent.unwrap(), r"K\xc3\xa4se/1 \xe2\x80\xae");
        let several = [("user-agent", "a"), ("user-agent", "b")];
        assert_eq!(read(&several, 0).user_agent.unwrap(), "a, b");
    }

    #[test]
    fn a_long_header_is_cut_visibly() {
        for long in ["x".repeat(5000), "ä".repeat(5000)] {
            let agent = read(&[("user-agent", &long)], 0).user_agent.unwrap();
            assert_eq!(agent.len(), LONGEST);
            assert!(agent.ends_with("..."), "{agent}");
        }
        let exact = "x".repeat(LONGEST);
        assert_eq!(read(&[("user-agent", &exact)], 0).user_agent.unwrap(), exact);
    }
}
