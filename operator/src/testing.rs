//! Re-exports what the tests of the workspace use beyond the command line.

pub use crate::process::lease;
pub use crate::webhook::certificates;
