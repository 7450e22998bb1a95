//! Lists the webhook's decisions and their reasons, with the words for metric labels and log lines.

/// The webhook's decision about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The pod gets the sidecar.
    Inject,
    /// The pod is admitted unchanged.
    Skip,
    /// The pod is refused.
    Refuse,
    /// The request is not one that the webhook can decide on.
    Invalid,
}

macro_rules! reasons {
    ($($(#[$documentation:meta])* $variant:ident = $verdict:ident, $name:literal;)*) => {
        /// The reason of a decision. Each reason belongs to one verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$documentation])* $variant,)*
        }

        impl Reason {
            /// All reasons, in the order of the variants.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for a metric's label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The verdict that the reason belongs to.
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)* }
            }
        }
    };
}

reasons! {
    /// The pod has the label, and its realm allows its namespace.
    Allowed = Inject, "allowed";
    /// The pod has the label, and will wait until its realm allows its namespace.
    NamespaceNotAllowed = Inject, "namespace_not_allowed";
    /// The pod has the label, and will wait until its realm's namespace exists.
    NoSuchNamespace = Inject, "no_such_namespace";
    /// The pod has no label.
    NotAsked = Skip, "not_asked";
    /// The pod's label says that it wants no sidecar.
    SwitchedOff = Skip, "switched_off";
    /// The pod has the sidecar already.
    AlreadyInjected = Skip, "already_injected";
    /// The pod's label is neither "true" nor "false".
    Label = Refuse, "label";
    /// The pod would share the node's network.
    HostNetwork = Refuse, "host_network";
    /// The pod would share the node's processes.
    HostProcesses = Refuse, "host_pid";
    /// The pod's containers would share processes.
    SharedProcesses = Refuse, "share_process_namespace";
    /// The pod runs on another operating system than Linux.
    OperatingSystem = Refuse, "operating_system";
    /// The pod is the mirror of a static pod.
    StaticPod = Refuse, "static_pod";
    /// One of the pod's annotations is invalid.
    Annotation = Refuse, "annotation";
    /// Another container uses a port of the sidecar.
    PortTaken = Refuse, "port_taken";
    /// Another container has the sidecar's name.
    ContainerNameTaken = Refuse, "container_name_taken";
    /// Another volume has the name of the sidecar's volume.
    VolumeNameTaken = Refuse, "volume_name_taken";
    /// Another container would read the sidecar's credentials.
    CredentialsExposed = Refuse, "credentials_exposed";
    /// The pod-level requests leave no space for the sidecar.
    PodResources = Refuse, "pod_resources";
    /// A `LimitRange` of the namespace does not allow the sidecar's resources.
    LimitRange = Refuse, "limit_range";
    /// The object is not a pod that an API server would create.
    Unreadable = Refuse, "unreadable_pod";
    /// The review is about something else than the creation of a pod.
    NotAPod = Refuse, "not_a_pod_creation";
    /// The request's method is not POST.
    Method = Invalid, "method";
    /// The request's Content-Type is not JSON.
    ContentType = Invalid, "content_type";
    /// The body is too large.
    TooLarge = Invalid, "too_large";
    /// The body did not arrive completely, or not in time.
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

/// A refusal of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason. Its verdict is [`Verdict::Refuse`].
    pub reason: Reason,
    /// What is wrong and what would be right, for the author of the pod. It may repeat what the pod
    /// says.
    pub sentence: String,
}

impl Refusal {
    /// Makes a refusal.
    pub fn new(reason: Reason, sentence: impl Into<String>) -> Self {
        Self { reason, sentence: sentence.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_different_word() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
