//! Writes log lines to standard error, one event on each line.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, for machines.
    Json,
    /// Text, for people.
    Text,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err("must be `json` or `text`"),
        }
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// If `filter` is not a list of levels such as `info` or `warn,twofactor_sidecar=debug`.
pub fn start(format: Format, filter: &str) -> Result<(), ParseError> {
    let filter: EnvFilter = filter.parse()?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Json => {
            builder.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
        }
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
    }
    Ok(())
}
