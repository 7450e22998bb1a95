//! Writes the scripts that sidecars of this release call to a folder, for the release after it.

use std::path::PathBuf;

use twofactor_store::redis::scripts::of_sidecars;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).unwrap_or_default();
    let names = ["verify", "issue", "record_delivery", "count_delivery"];
    for (name, script) in names.into_iter().zip(of_sidecars()) {
        std::fs::write(folder.join(name).with_extension("lua"), script.text())?;
    }
    Ok(())
}
