//! Counts repairs of users whose data in Redis was not of the form that sidecars write. The labels
//! name the objects of the first users, because an administrator has to find out what spoilt them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounterVec;
use twofactor_server::metrics::Registrar;

/// Number of users that have labels of their own. Further ones share one.
const NAMED: usize = 100;

/// Counts repairs by user.
#[derive(Clone, Debug)]
pub struct RepairedUsers {
    counter: IntCounterVec,
    named: Arc<Mutex<HashSet<(String, String)>>>,
}

impl RepairedUsers {
    pub fn new(r: &mut Registrar) -> prometheus::Result<Self> {
        let counter = r.counters(
            "twofactor_users_repaired_total",
            &["user_namespace", "user"],
            "Times that data of a user that no sidecar writes was removed from Redis; after a hundred users, further ones are counted as others. Investigate each of them.",
        )?;
        Ok(Self { counter, named: Arc::default() })
    }

    /// Counts a repair. After the first users, all others are counted together.
    pub fn count(&self, namespace: &str, name: &str) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let user = (namespace.to_owned(), name.to_owned());
        let has_labels = named.contains(&user) || (named.len() < NAMED && named.insert(user));
        let labels = if has_labels { [namespace, name] } else { ["", "others"] };
        self.counter.with_label_values(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_users_is_named() {
        let mut registrar = Registrar::default();
        let repaired = RepairedUsers::new(&mut registrar).unwrap();
        let registry = registrar.registry();
        for number in 0..2 * NAMED {
            repaired.count("team", &format!("user-{number}"));
            repaired.count("team", "user-0");
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert_eq!(text.matches("twofactor_users_repaired_total{").count(), NAMED + 1);
        assert!(text.contains("user=\"user-0\",user_namespace=\"team\"} 201"), "{text}");
        assert!(text.contains("user=\"others\",user_namespace=\"\"} 100"), "{text}");
    }
}
