//! Says which namespaces this operator looks after.

/// The namespaces that are looked at; all when there are none.
#[derive(Clone, Debug, Default)]
pub struct Scopes(pub Vec<String>);

impl Scopes {
    /// How many lists there are.
    pub(crate) fn lists(&self) -> usize {
        self.0.len().max(1)
    }

    /// Whether users of this namespace are looked after.
    #[must_use]
    pub fn cover(&self, namespace: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == namespace)
    }

    pub(crate) fn contains(&self, number: usize, namespace: Option<&str>) -> bool {
        self.0.get(number).is_none_or(|name| Some(name.as_str()) == namespace)
    }
}
