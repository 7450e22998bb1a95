//! Reads what a program needs before it serves, and stops it on signals.

use std::path::Path;
use std::{fs, io};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `stop` on SIGTERM or SIGINT. Must be called within a tokio runtime.
///
/// # Errors
/// If the signals cannot be received.
pub fn stop_on_signals(stop: &CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = stop.cancelled() => return,
        };
        tracing::info!("{name}: stopping after work in progress has finished");
        stop.cancel();
    });
    Ok(())
}

/// Reads the file with CA certificates that `flag` names. An empty path counts as unset, because an
/// environment variable may be set to nothing.
///
/// # Errors
/// If the file cannot be read.
pub fn read_certificate_authority(
    flag: &str,
    path: Option<&Path>,
) -> Result<Option<String>, String> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    let content = fs::read_to_string(path);
    content.map(Some).map_err(|error| format!("{flag} {}: {error}", path.display()))
}
