//! Knows which Secrets may be imported from, and which users import from each. The watches report
//! both.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::user_ref::UserRef;

/// Namespace and name of a Secret.
type SecretName = (Arc<str>, Arc<str>);

/// The Secrets that are offered or wanted for an import.
#[derive(Debug, Default)]
pub struct Imports(Mutex<HashMap<SecretName, Source>>);

#[derive(Debug, Default)]
struct Source {
    /// The version of the Secret, if it exists with the label.
    offered: Option<String>,
    /// The users that import from it.
    users: BTreeSet<UserRef>,
}

impl Imports {
    /// Records that a user imports from the Secret `new` of its namespace, and no longer from
    /// `old`.
    pub fn set_source(&self, user: &UserRef, old: Option<&str>, new: Option<&str>) {
        if old == new {
            return;
        }
        let mut sources = self.sources();
        if let Some(old) = old {
            change(&mut sources, &name(&user.namespace, old), |source| {
                source.users.remove(user);
            });
        }
        if let Some(new) = new {
            sources.entry(name(&user.namespace, new)).or_default().users.insert(user.clone());
        }
    }

    /// Records the version of a Secret with the label, or that there is none any more. Returns the
    /// users that import from it, if that has changed.
    pub fn offered(&self, namespace: &str, secret: &str, version: Option<&str>) -> Vec<UserRef> {
        let mut users = Vec::new();
        change(&mut self.sources(), &name(namespace, secret), |source| {
            if source.offered.as_deref() != version {
                source.offered = version.map(str::to_owned);
                users.extend(source.users.iter().cloned());
            }
        });
        users
    }

    /// Whether the Secret exists with the label.
    pub fn is_offered(&self, namespace: &str, secret: &str) -> bool {
        let sources = self.sources();
        sources.get(&name(namespace, secret)).is_some_and(|source| source.offered.is_some())
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<SecretName, Source>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(namespace: &str, secret: &str) -> SecretName {
    (namespace.into(), secret.into())
}

/// Changes a source, and forgets it if it is neither offered nor wanted.
fn change(
    sources: &mut HashMap<SecretName, Source>,
    name: &SecretName,
    work: impl FnOnce(&mut Source),
) {
    let source = sources.entry(name.clone()).or_default();
    work(source);
    if source.offered.is_none() && source.users.is_empty() {
        sources.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::user_ref::user_ref;

    #[test]
    fn users_are_returned_when_the_version_of_their_source_changes() {
        let (imports, alice, bob) =
            (Imports::default(), user_ref("people", "alice"), user_ref("people", "bob"));
        imports.set_source(&alice, None, Some("old"));
        imports.set_source(&bob, None, Some("old"));
        assert!(!imports.is_offered("people", "old"));
        assert_eq!(imports.offered("people", "old", Some("1")), [alice.clone(), bob.clone()]);
        assert!(imports.is_offered("people", "old") && !imports.is_offered("others", "old"));
        assert!(imports.offered("people", "old", Some("1")).is_empty(), "listed again");
        assert!(imports.offered("others", "old", Some("1")).is_empty());
        imports.set_source(&alice, Some("old"), Some("new"));
        assert_eq!(imports.offered("people", "old", None), [bob]);
        assert_eq!(imports.offered("people", "new", Some("2")), [alice]);
    }

    #[test]
    fn nothing_is_kept_of_what_is_neither_offered_nor_wanted() {
        let (imports, alice) = (Imports::default(), user_ref("people", "alice"));
        imports.set_source(&alice, None, Some("old"));
        let _ = imports.offered("people", "old", Some("1"));
        imports.set_source(&alice, Some("old"), None);
        let _ = imports.offered("people", "old", None);
        let _ = imports.offered("people", "never", None);
        assert!(imports.sources().is_empty());
    }
}
