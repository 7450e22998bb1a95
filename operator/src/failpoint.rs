//! Aborts the process at the step that `TWOFACTOR_CRASH_AT` names, so that tests can crash it
//! there. The variable exists only in builds with debug assertions.

/// A step of reconciliation after which the process can be made to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Before anything was read.
    Started,
    /// The user's Secret and an imported seed have been read.
    Fetched,
    /// A Secret was created.
    SecretCreated,
    /// A Secret was repaired, or got a new seed.
    SecretUpdated,
    /// Keys of a predecessor with the same username were removed.
    PredecessorRemoved,
    /// The record was published.
    Published,
    /// The status was written.
    StatusWritten,
}

impl Step {
    /// Every step, in the order of a reconciliation.
    pub const ALL: [Self; 7] = [
        Self::Started,
        Self::Fetched,
        Self::SecretCreated,
        Self::SecretUpdated,
        Self::PredecessorRemoved,
        Self::Published,
        Self::StatusWritten,
    ];

    /// The name that `TWOFACTOR_CRASH_AT` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Fetched => "fetched",
            Self::SecretCreated => "secret-created",
            Self::SecretUpdated => "secret-updated",
            Self::PredecessorRemoved => "predecessor-removed",
            Self::Published => "published",
            Self::StatusWritten => "status-written",
        }
    }
}

/// Aborts the process if `TWOFACTOR_CRASH_AT` names this step.
#[cfg(debug_assertions)]
pub fn hit(step: Step) {
    use std::sync::OnceLock;

    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    if WANTED.get_or_init(|| std::env::var("TWOFACTOR_CRASH_AT").ok()).as_deref()
        == Some(step.name())
    {
        std::process::abort();
    }
}

/// Does nothing, because the variable does not exist in a release.
#[cfg(not(debug_assertions))]
pub const fn hit(_: Step) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let mut names = Step::ALL.map(Step::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Step::ALL.len());
    }
}
