//! Reads the names of hosts, as settings and email addresses contain them, into the ASCII form that
//! DNS, TLS and SMTP use.

/// Maximum length of a host name in characters (RFC 1035 §2.3.4).
const LONGEST_NAME: usize = 253;
/// Maximum length of a label in characters.
const LONGEST_LABEL: usize = 63;

/// Returns a host name in lower case and with its labels in ASCII (RFC 5890), such as
/// `xn--bcher-kva.example` for `Bücher.example`. Returns `None` for an IP address, and for text
/// that no DNS server can have a name for.
#[must_use]
pub fn to_ascii(name: &str) -> Option<String> {
    let ascii = idna::domain_to_ascii(name).ok()?;
    let mut labels = ascii.strip_suffix('.').unwrap_or(&ascii).split('.');
    let is_name = ascii.len() <= LONGEST_NAME
        && labels.clone().all(is_label)
        // No top-level domain is a number, but the end of an IPv4 address is one.
        && labels.next_back().is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()));
    is_name.then_some(ascii)
}

/// Underscores are no part of host names, but container runtimes have names with them.
fn is_label(label: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = label.as_bytes();
    bytes.len() <= LONGEST_LABEL
        && end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ascii() {
        for (name, ascii) in [
            ("mail.example.org", "mail.example.org"),
            ("MAIL.Example.org", "mail.example.org"),
            ("mail.example.org.", "mail.example.org."),
            ("localhost", "localhost"),
            ("mail_server", "mail_server"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("почта.example", "xn--80a1acny.example"),
        ] {
            assert_eq!(to_ascii(name).as_deref(), Some(ascii), "{name}");
        }
    }

    #[test]
    fn no_other_text_is_a_name() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = vec!["a".repeat(60); 5].join(".");
        for name in [
            "",
            ".",
            "a..b",
            "-bad.example",
            "bad-.example",
            &long,
            &longer,
            "a b",
            "a\n",
            "a:25",
            "a/b",
            "a@b",
            "127.0.0.1",
            "[::1]",
            "::1",
            "a%41",
            "a*b",
        ] {
            assert_eq!(to_ascii(name), None, "{name}");
        }
    }
}
