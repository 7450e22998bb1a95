//! Helpers for tests of a running sidecar: realms with a provider, codes from an authenticator app,
//! and the metrics.

use std::fs;
use std::ops::Deref;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use twofactor_core::provider::{Providers, SmtpSecurity, SmtpSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_store::clock::Clock;
use twofactor_tests::http::Reply;
use twofactor_tests::mail::MailServer;
use twofactor_tests::sidecar::SidecarProcess;

use crate::support::world::{Person, World};

/// A sidecar for the services of one namespace, with the credentials that it reads.
pub(crate) struct Served {
    process: SidecarProcess,
    pub(crate) credentials: TempDir,
}

impl Deref for Served {
    type Target = SidecarProcess;

    fn deref(&self) -> &SidecarProcess {
        &self.process
    }
}

impl Served {
    /// Starts a sidecar for the services of a namespace in the realm of `world`.
    pub(crate) async fn start(world: &World, namespace: &str) -> Self {
        let credentials = world.credentials(namespace);
        Self { process: serve(credentials.path()).await, credentials }
    }

    /// Starts sidecars of one namespace that log errors only, for tests under load.
    pub(crate) async fn start_many(world: &World, namespace: &str, count: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for _ in 0..count {
            let credentials = world.credentials(namespace);
            let path = credentials.path().to_str().unwrap().to_owned();
            let arguments = ["serve", "--log", "error", "--credentials", &path];
            let process = SidecarProcess::builder().args(arguments).start().await;
            all.push(Self { process, credentials });
        }
        all
    }

    /// Requests a code, with the username in the body.
    pub(crate) async fn generate(&self, name: &str) -> Reply {
        self.api().post_json("/auth/generate", &json!({ "username": name })).await
    }

    /// Submits a code.
    pub(crate) async fn verify(&self, name: &str, code: &str) -> Reply {
        self.api().verify(name, code).await
    }
}

/// Starts a sidecar with the credentials in a folder.
pub(crate) async fn serve(credentials: &Path) -> SidecarProcess {
    let path = credentials.to_str().unwrap();
    SidecarProcess::builder().args(["serve", "--credentials", path]).start().await
}

/// A realm that sends its mail through `mail`.
pub(crate) fn with_mail(mail: &MailServer) -> RealmRecord {
    let smtp = SmtpSettings {
        server: "localhost".to_owned(),
        port: mail.port(),
        security: SmtpSecurity::Starttls,
        username: None,
        password: None,
        from: "otp@example.org".parse().unwrap(),
        ehlo_name: None,
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
