//! Says which namespaces this operator watches.

/// Watched namespaces; all if empty.
#[derive(Clone, Debug, Default)]
pub struct WatchedNamespaces(pub Vec<String>);

impl WatchedNamespaces {
    /// The number of lists, one for each namespace or one for all.
    pub(crate) fn lists(&self) -> usize {
        self.0.len().max(1)
    }

    /// Whether the namespace is watched.
    pub fn includes(&self, namespace: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == namespace)
    }

    /// The namespaces of services, `services` and those of users, `users`; all if none of services
    /// is named.
    pub fn of_services(services: &[String], users: &[String]) -> Self {
        let mut all = services.to_vec();
        if !services.is_empty() {
            all.extend(users.iter().filter(|name| !services.contains(name)).cloned());
        }
        Self(all)
    }

    pub(crate) fn contains(&self, number: usize, namespace: &str) -> bool {
        self.0.get(number).is_none_or(|name| name == namespace)
    }
}
