//! Checks CA certificates as administrators give them, and says what is wrong in words. A TLS
//! library would skip what it does not understand, and then trust nothing or too little.

use x509_parser::parse_x509_certificate;
use x509_parser::pem::Pem;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

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
    let blocks: Vec<Pem> =
        Pem::iter_from_buffer(pem.as_bytes()).collect::<Result<_, _>>().map_err(
            |_| "contains a certificate that cannot be read: between its lines is no base64",
        )?;
    let certificates: Vec<&Pem> = blocks.iter().filter(|pem| pem.label == "CERTIFICATE").collect();
    if certificates.len() != count {
        return Err(
            "must have each -----BEGIN and -----END on a line of its own, without blanks before it",
        );
    }
    certificates.into_iter().try_for_each(|certificate| check_one(&certificate.contents))
}

/// A certificate that signed itself can be trusted without being an authority's.
fn check_one(certificate: &[u8]) -> Result<(), &'static str> {
    let (_, parsed) = parse_x509_certificate(certificate)
        .map_err(|_| "contains a certificate that cannot be read: it is no X.509 certificate")?;
    if parsed.is_ca() || parsed.subject() == parsed.issuer() {
        return Ok(());
    }
    Err(
        "contains a certificate that is not an authority's: it must be that of the authority which \
         signed the server's",
    )
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
            (format!("{AUTHORITY}-----BEGIN PRIVATE KEY-----\n"), "private key"),
        ] {
            let error = check(&pem).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
