//! Names a request in the log lines that it causes: by the trace of the calling service
//! (`traceparent`, W3C Trace Context), by its `X-Request-Id`, or by a number of the sidecar's own.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use rand::rngs::SysRng;
use rand_core::{Rng, UnwrapErr};
use tracing::Span;

/// Maximum length of an id that a caller chose, in characters.
const LONGEST: usize = 64;

/// The number of the next request. The first one is random, so that the numbers of two sidecars
/// differ.
static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(UnwrapErr(SysRng).next_u64()));

/// Returns the span in which a request is answered. Its log lines contain the span's fields.
pub(super) fn span(headers: &HeaderMap) -> Span {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(trace_id) = text("traceparent").and_then(trace_id) {
        return tracing::info_span!("request", trace_id);
    }
    if let Some(request_id) = text("x-request-id").filter(|id| is_plain(id)) {
        return tracing::info_span!("request", request_id);
    }
    let request_id = format!("{:016x}", NEXT.fetch_add(1, Ordering::Relaxed));
    tracing::info_span!("request", request_id)
}

/// The trace of `00-<trace>-<parent>-<flags>`. Later versions may have more at the end.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let mut next = |length: usize| {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        parts.next().filter(|part| part.len() == length && part.bytes().all(is_hex))
    };
    let (version, trace, parent) = (next(2)?, next(32)?, next(16)?);
    let _flags = next(2)?;
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let is_valid = version != "ff" && !is_zero(trace) && !is_zero(parent);
    (is_valid && (version != "00" || parts.next().is_none())).then_some(trace)
}

/// Whether an id has only characters that no log format changes.
fn is_plain(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    !id.is_empty() && id.len() <= LONGEST && id.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn the_trace_of_a_valid_traceparent_is_taken_and_nothing_of_an_invalid_one() {
        let valid = format!("00-{TRACE}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&valid), Some(TRACE));
        assert_eq!(trace_id(&format!("cc-{TRACE}-00f067aa0ba902b7-01-more")), Some(TRACE));
        for invalid in [
            String::new(),
            format!("{valid}-more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            valid.to_uppercase(),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}\"-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(trace_id(&invalid), None, "{invalid}");
        }
    }

    #[test]
    fn an_id_of_a_caller_has_plain_characters_and_a_bounded_length() {
        for plain in ["a", "7f3c:1/2+3=", &"x".repeat(LONGEST)] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in ["", "a b", "a\"b", "a\u{1b}[31m", "ä", &"x".repeat(LONGEST + 1)] {
            assert!(!is_plain(other), "{other}");
        }
    }
}
