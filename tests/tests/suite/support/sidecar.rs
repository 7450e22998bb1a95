//! Helpers for tests of a running sidecar: realms with a provider, codes from an authenticator app,
//! and the metrics.

use std::fs;

use twofactor_core::provider::{Providers, SmtpSecurity, SmtpSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_store::clock::Clock;
use twofactor_tests::mail::MailServer;
use twofactor_tests::sidecar::SidecarProcess;

use crate::support::world::Person;

/// A realm that sends its mail through `mail`.
pub(crate) fn with_mail(mail: &MailServer) -> RealmRecord {
    let smtp = SmtpSettings {
        server: "localhost".to_owned(),
        port: mail.port(),
        security: SmtpSecurity::Starttls,
        username: None,
        password: None,
        from: "otp@example.org".to_owned(),
        ca_certificates: Some(fs::read_to_string(mail.ca_path()).unwrap()),
    };
    let providers = Providers { smtp: Some(smtp), ..Providers::default() };
    RealmRecord { providers, ..RealmRecord::default() }
}

/// The code that a user's app shows now.
pub(crate) fn shown(person: &Person) -> String {
    person.code_at(Clock::System.now(), 0).expose_secret().to_owned()
}

/// The metrics of the sidecar, in the text format of Prometheus.
pub(crate) async fn metrics(sidecar: &SidecarProcess) -> String {
    sidecar.admin().get("/metrics").await.body
}
