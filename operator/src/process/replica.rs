//! Runs what controller and admission have in common: the admin port, and the watches of realms and
//! namespaces.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use prometheus::IntCounter;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use twofactor_server::admin::{self, Check};
use twofactor_server::http::{self, Limits};
use twofactor_server::metrics::Registrar;

use super::DRAIN;
use super::error::StartError;
use super::tasks::Tasks;
use crate::k8s::watch_signs::{SignAges, WatchSigns};
use crate::state::realm_policies::Policies;
use crate::state::refused_watches::{ForbiddenWatches, RefusedWatches};
use crate::state::watched_namespaces::WatchedNamespaces;
use crate::watch::{self, Synced};

/// Idle timeout of the admin port, longer than a scraper's interval of a few seconds.
const ADMIN_IDLE: Duration = Duration::from_secs(15);

/// What every replica knows: which namespaces each realm allows.
pub struct Replica {
    pub policies: Arc<Policies>,
    /// Whether `policies` is complete: realms and namespaces.
    pub synced: [Synced; 2],
    /// Watches that the API server refuses.
    pub refused: RefusedWatches,
    checks: [Check; 2],
    signs: WatchSigns,
}

impl Replica {
    /// Knows nothing yet. `signs` are those of the client's watches.
    pub fn new(signs: WatchSigns) -> Self {
        let checks = ["realms", "namespaces"].map(Check::required);
        let synced = [Synced::default(), Synced::default()];
        Self { policies: Arc::default(), synced, refused: RefusedWatches::default(), checks, signs }
    }

    /// Serves the admin port with the checks of every replica and `more`. It is called first, so
    /// that probes get an answer while the API server is slow.
    pub async fn serve_admin(
        &self,
        tasks: &mut Tasks,
        address: SocketAddr,
        more: impl IntoIterator<Item = Check>,
        mut registrar: Registrar,
        stop: &CancellationToken,
    ) -> Result<(), StartError> {
        let listener = listen(address, "--admin-listen").await?;
        let checks = self.checks.iter().cloned().chain(more).collect();
        let limits = Limits { idle: Some(ADMIN_IDLE), drain: DRAIN, ..admin::limits() };
        SignAges::register(&mut registrar, self.signs.clone())?;
        ForbiddenWatches::register(&mut registrar, self.refused.clone())?;
        let signs = self.signs.clone();
        let routes =
            admin::routes_while(move || watches_live(&signs), checks, registrar.registry());
        tasks.spawn("admin", http::serve(listener, routes, limits, stop.clone()));
        Ok(())
    }

    /// Watches realms and namespaces. `unreadable` counts the realms that this version cannot read.
    pub fn watch(
        &self,
        tasks: &mut Tasks,
        client: &Client,
        namespaces: &[String],
        unreadable: &IntCounter,
        stop: &CancellationToken,
    ) {
        let [realms, all_namespaces] = self.synced.clone();
        tasks.spawn(
            "policies: realms",
            watch::realms::realms(
                client.clone(),
                self.policies.clone(),
                WatchedNamespaces(namespaces.to_owned()),
                self.refused.clone(),
                unreadable.clone(),
                realms,
                stop.clone(),
            ),
        );
        tasks.spawn(
            "policies: namespaces",
            watch::realms::namespaces(
                client.clone(),
                self.policies.clone(),
                self.refused.clone(),
                all_namespaces,
                stop.clone(),
            ),
        );
        for (check, synced) in self.checks.clone().into_iter().zip(self.synced.clone()) {
            let stop = stop.clone();
            tasks.spawn("readiness", async move {
                stop.run_until_cancelled(synced.wait()).await;
                check.set(true);
                stop.cancelled().await;
            });
        }
    }
}

/// Whether no watch is stuck. A process with a stuck watch is restarted, because it could miss the
/// removal of a user.
fn watches_live(signs: &WatchSigns) -> bool {
    let stuck = signs.stuck(Instant::now());
    if !stuck.is_empty() {
        tracing::error!(watches = ?stuck, "watches stuck; the liveness probe fails");
    }
    stuck.is_empty()
}

/// Listens on the address that `flag` sets.
pub async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, flag, source })
}
