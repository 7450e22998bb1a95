//! Why the webhook decided as it did, as words for a metric's labels and for log lines.

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The pod gets the sidecar.
    Inject,
    /// The pod is let through as it is.
    Skip,
    /// The pod is not let through.
    Refuse,
    /// The request is not one that the webhook can decide about.
    Invalid,
}

macro_rules! reasons {
    ($($(#[$documentation:meta])* $variant:ident = $verdict:ident, $name:literal;)*) => {
        /// Why. Each belongs to one verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$documentation])* $variant,)*
        }

        impl Reason {
            /// All of them, in the order of the variants.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for a metric's label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What follows from it.
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)* }
            }
        }
    };
}

reasons! {
    /// It asked, and its realm lets its namespace in.
    LetIn = Inject, "let_in";
    /// It asked; it will wait until its realm lets its namespace in.
    NotLetIn = Inject, "not_let_in";
    /// It asked; it will wait until there is a namespace of its realm's name.
    NoSuchNamespace = Inject, "no_such_namespace";
    /// It has no label.
    NotAsked = Skip, "not_asked";
    /// Its label says that it wants no sidecar.
    SwitchedOff = Skip, "switched_off";
    /// It has the sidecar.
    AlreadyInjected = Skip, "already_injected";
    /// Its label says neither yes nor no.
    Label = Refuse, "label";
    /// It would share the node's network.
    HostNetwork = Refuse, "host_network";
    /// It would share the node's processes.
    HostProcesses = Refuse, "host_pid";
    /// Its containers would share processes.
    SharedProcesses = Refuse, "share_process_namespace";
    /// It runs on Windows.
    OperatingSystem = Refuse, "operating_system";
    /// It is the mirror of a static pod.
    StaticPod = Refuse, "static_pod";
    /// One of its annotations says something impossible.
    Annotation = Refuse, "annotation";
    /// One of its containers uses a port of the sidecar.
    PortTaken = Refuse, "port_taken";
    /// It brings another container of the sidecar's name.
    ContainerNameTaken = Refuse, "container_name_taken";
    /// It brings another volume of the name of the sidecar's.
    VolumeNameTaken = Refuse, "volume_name_taken";
    /// Another container would read the sidecar's credentials.
    CredentialsExposed = Refuse, "credentials_exposed";
    /// It is not a pod that an API server would create.
    Unreadable = Refuse, "unreadable_pod";
    /// The review is about something else than the creation of a pod.
    NotAPod = Refuse, "not_a_pod_creation";
    /// The request's method is not POST.
    Method = Invalid, "method";
    /// The body is not said to be JSON.
    ContentType = Invalid, "content_type";
    /// The body is too large.
    TooLarge = Invalid, "too_large";
    /// The body did not arrive, or not in time.
    BrokenOff = Invalid, "broken_off";
    /// The body is not an `AdmissionReview` in JSON.
    NotAReview = Invalid, "not_a_review";
}

impl Verdict {
    /// The word for a metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::Skip => "skip",
            Self::Refuse => "refuse",
            Self::Invalid => "invalid",
        }
    }
}

/// Why a pod is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of reason. Its verdict is [`Verdict::Refuse`].
    pub reason: Reason,
    /// What is wrong and what would be right, for whoever wrote the pod. It may repeat what they
    /// wrote.
    pub sentence: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: Reason, sentence: impl Into<String>) -> Self {
        Self { reason, sentence: sentence.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
