//! Checks CA certificates as administrators give them, and says what is wrong in words. A TLS
//! library would skip what it does not understand, and then trust nothing or too little.

use data_encoding::BASE64;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Tags of DER (X.690 §8.1.2).
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// Tags of the version and the extensions in a certificate (RFC 5280 §4.1).
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// The identifier of the basic constraints, and the value of their first field for an authority.
const BASIC_CONSTRAINTS: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x13];
const IS_AUTHORITY: [u8; 3] = [0x01, 0x01, 0xff];

/// Checks certificates (PEM) that the certificate of a server is verified with.
///
/// # Errors
/// Returns what is invalid, as a sentence that begins with the name of the setting.
pub fn check(pem: &str) -> Result<(), &'static str> {
    if pem.starts_with('\u{feff}') {
        return Err("begins with a byte order mark: save it as UTF-8 without one");
    }
    if pem.contains("PRIVATE KEY-----") {
        return Err("contains a private key: only certificates belong there");
    }
    let count = pem.matches(BEGIN).count();
    if count == 0 {
        return Err(
            "contains no certificate: it must be in PEM, with a line -----BEGIN CERTIFICATE-----",
        );
    }
    if pem.matches(END).count() != count {
        return Err("is not complete: each certificate must end with -----END CERTIFICATE-----");
    }
    let stands_alone = |marker: &str| pem.lines().filter(|line| line.trim_end() == marker).count();
    if stands_alone(BEGIN) != count || stands_alone(END) != count {
        return Err(
            "must have each -----BEGIN and -----END on a line of its own, without blanks before it",
        );
    }
    decode(pem)?.iter().try_for_each(|certificate| match can_be_trusted(certificate) {
        Some(true) => Ok(()),
        Some(false) => {
            Err("contains a certificate that is not an authority's: it must be that of \
                            the authority which signed the server's")
        }
        None => Err("contains a certificate that cannot be read: it is no X.509 certificate"),
    })
}

/// Returns the content of each block of base64.
fn decode(pem: &str) -> Result<Vec<Vec<u8>>, &'static str> {
    let (mut found, mut block) = (Vec::new(), None);
    for line in pem.lines().map(str::trim_end) {
        match (line, block.take()) {
            (BEGIN, _) => block = Some(String::new()),
            (END, Some(base64)) => {
                found.push(BASE64.decode(base64.as_bytes()).map_err(|_| {
                    "contains a certificate that cannot be read: between its lines is no base64"
                })?);
            }
            (line, Some(base64)) => block = Some(base64 + line),
            (_, None) => {}
        }
    }
    Ok(found)
}

/// Whether a certificate (DER) is an authority's or has signed itself, which can be trusted without
/// being an authority's. Returns `None` if it is no certificate.
///
/// A library for certificates would add sixteen crates to the sidecar for this one question; TLS
/// checks all the rest.
fn can_be_trusted(certificate: &[u8]) -> Option<bool> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (mut fields, _) = expect(SEQUENCE, certificate)?;
    if fields.first() == Some(&VERSION) {
        (_, _, fields) = value(fields)?;
    }
    let (_serial, fields) = expect(INTEGER, fields)?;
    let (_algorithm, fields) = expect(SEQUENCE, fields)?;
    let (issuer, fields) = expect(SEQUENCE, fields)?;
    let (_validity, fields) = expect(SEQUENCE, fields)?;
    let (subject, fields) = expect(SEQUENCE, fields)?;
    let (_key, mut fields) = expect(SEQUENCE, fields)?;
    let mut is_authority = false;
    while !fields.is_empty() {
        let (tag, content, rest) = value(fields)?;
        fields = rest;
        if tag == EXTENSIONS {
            is_authority = has_authority(expect(SEQUENCE, content)?.0)?;
        }
    }
    Some(is_authority || issuer == subject)
}

/// Whether one of the extensions says that the certificate is an authority's.
fn has_authority(mut extensions: &[u8]) -> Option<bool> {
    while !extensions.is_empty() {
        let (extension, rest) = expect(SEQUENCE, extensions)?;
        extensions = rest;
        if let Some(mut fields) = extension.strip_prefix(&BASIC_CONSTRAINTS) {
            // Whether the extension is critical stands before its value, or not at all.
            if fields.first() == IS_AUTHORITY.first() {
                (_, _, fields) = value(fields)?;
            }
            let (_, constraints, _) = value(fields)?;
            return Some(expect(SEQUENCE, constraints)?.0.starts_with(&IS_AUTHORITY));
        }
    }
    Some(false)
}

/// Returns the content of the first value, which must have this tag, and what follows it.
fn expect(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = value(der)?;
    (found == tag).then_some((content, rest))
}

/// Returns tag and content of the first value, and what follows it.
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = der else { return None };
    let (length, rest) = if *length < 0x80 {
        (usize::from(*length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(*length & 0x7f))?;
        let length = bytes.iter().fold(0_u64, |length, byte| (length << 8) | u64::from(*byte));
        (usize::try_from(length).ok().filter(|_| bytes.len() <= 4)?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `CN=Test CA`, with `CA:TRUE`.
    const AUTHORITY: &str = include_str!("test_certificates/authority.pem");
    /// `CN=localhost`, signed by the authority.
    const SERVER: &str = include_str!("test_certificates/server.pem");
    /// `CN=localhost`, with `CA:FALSE`, signed by itself.
    const SELF_SIGNED: &str = include_str!("test_certificates/self-signed.pem");

    #[test]
    fn certificates_of_authorities_are_valid() {
        for pem in [
            AUTHORITY.to_owned(),
            AUTHORITY.trim_end().to_owned(),
            AUTHORITY.replace('\n', "\r\n"),
            format!("# the authority of the company\n{AUTHORITY}\n\n{AUTHORITY}"),
            SELF_SIGNED.to_owned(),
        ] {
            assert_eq!(check(&pem), Ok(()), "{pem}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let last = AUTHORITY.rfind(END).unwrap();
        for (pem, words) in [
            (format!("\u{feff}{AUTHORITY}"), "byte order mark"),
            (String::new(), "no certificate"),
            ("MIIBszCCAVmgAwIBAgIU".to_owned(), "no certificate"),
            (AUTHORITY[..last].to_owned(), "not complete"),
            (format!("{AUTHORITY}{}", &AUTHORITY[..last]), "not complete"),
            (format!("{}{AUTHORITY}", AUTHORITY.trim_end()), "line of its own"),
            (AUTHORITY.replace("-----BEGIN", "  -----BEGIN"), "line of its own"),
            (AUTHORITY.replace("MII", "M!I"), "no base64"),
            (format!("{BEGIN}\nAAAA\n{END}\n"), "no X.509"),
            (SERVER.to_owned(), "not an authority's"),
            (format!("{AUTHORITY}{SERVER}"), "not an authority's"),
            (
                format!("{BEGIN}\n{}\n{END}\n", BASE64.encode(b"\x30\x84\xff\xff\xff\xff")),
                "no X.509",
            ),
            (format!("{BEGIN}\n{END}\n"), "no X.509"),
            (format!("{AUTHORITY}-----BEGIN PRIVATE KEY-----\n"), "private key"),
        ] {
            let error = check(&pem).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn a_certificate_that_was_cut_off_or_changed_is_never_a_panic() {
        let whole = decode(AUTHORITY).unwrap().remove(0);
        assert_eq!(can_be_trusted(&whole), Some(true));
        assert_eq!(can_be_trusted(&decode(SERVER).unwrap()[0]), Some(false));
        for end in 0..whole.len() {
            assert_eq!(can_be_trusted(&whole[..end]), None, "{end}");
            for byte in [0x00, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = whole.clone();
                changed[end] = byte;
                let _ = can_be_trusted(&changed);
            }
        }
    }
}
