//! Returns when certificates end. No I/O.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use twofactor_core::time::UnixMillis;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificates::validity::Validity;

/// Returns the end of the certificate (PEM) that ends first, or nothing if none can be read.
pub fn earliest(pem: &str) -> Option<UnixMillis> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    let end = |der: CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Some(Validity::of(&certificate).until)
    };
    certificates.filter_map(end).min()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn the_certificate_that_ends_first_counts() {
        let until = |year| {
            let mut params = CertificateParams::new(vec!["redis".to_owned()]).unwrap();
            params.not_after = date_time_ymd(year, 1, 1);
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
        };
        let both = [until(2040), until(2030)].concat();
        assert_eq!(earliest(&both), Some(UnixMillis::from_seconds(1_893_456_000)));
        assert_eq!(earliest("no certificate"), None);
    }
}
