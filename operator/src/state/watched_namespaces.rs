//! Says which namespaces this operator looks after.

/// The namespaces that are looked at; all when there are none.
#[derive(Clone, Debug, Default)]
pub struct WatchedNamespaces(pub Vec<String>);

impl WatchedNamespaces {
    /// How many lists there are.
    pub(crate) fn lists(&self) -> usize {
        self.0.len().max(1)
    }

    /// Whether users of this namespace are looked after.
    pub fn includes(&self, namespace: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == namespace)
    }

    pub(crate) fn contains(&self, number: usize, namespace: Option<&str>) -> bool {
        self.0.get(number).is_none_or(|name| Some(name.as_str()) == namespace)
    }
}
