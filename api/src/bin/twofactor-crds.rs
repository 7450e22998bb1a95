//! Prints the CRDs, or writes them into the folder that is given.

use std::error::Error;
use std::path::Path;

use twofactor_api::crds::crds;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1);
    for (index, file) in crds()?.into_iter().enumerate() {
        match &folder {
            Some(folder) => std::fs::write(Path::new(folder).join(file.name), file.yaml)?,
            None if index == 0 => print!("{}", file.yaml),
            None => print!("---\n{}", file.yaml),
        }
    }
    Ok(())
}
