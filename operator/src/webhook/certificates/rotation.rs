//! What comes next for the authority, and for a replica's certificate. Enters: what there is, what
//! the webhook configuration shows, and the moment. Leaves: the next step, and what there is after
//! it. Without I/O.
//!
//! An authority is replaced in phases, so that whatever certificate an API server meets, and
//! whichever bundle it goes by, they fit:
//!
//! 1. the next authority is made, and the bundle holds it beside the current one;
//! 2. when the bundle has shown it for the grace time, so that every API server knows it, it
//!    becomes the current one;
//! 3. replicas replace their certificates; the previous authority stays in the bundle until the
//!    last of the old ones is over;
//! 4. the bundle holds the current one alone.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use thiserror::Error;
use twofactor_core::secret::SecretText;
use twofactor_core::time::UnixMillis;

use super::authority::{Authority, AuthorityError, Root};

const LONGEST_GRACE: Duration = Duration::from_mins(1);
/// Roots that are taken over from a bundle when the Secret is lost.
const MOST_PREVIOUS: usize = 4;

const CURRENT: (&str, &str) = ("ca.crt", "ca.key");
const NEXT: (&str, &str) = ("next.crt", "next.key");
const PREVIOUS: &str = "previous.crt";
const PREVIOUS_UNTIL: &str = "previous.until";

/// How long certificates are good for. Whole seconds, ten at least for the authority.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of the authority.
    pub authority: Duration,
    /// Of a replica's certificate; much shorter than the authority's.
    pub leaf: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { authority: Duration::from_hours(365 * 24), leaf: Duration::from_hours(24) }
    }
}

impl Lifetimes {
    /// For every API server to see a change of the webhook configuration.
    #[must_use]
    pub fn grace(&self) -> Duration {
        LONGEST_GRACE.min(self.authority / 10)
    }
}

/// How long before the end it is better to be early than to wait for the whole grace time: that of
/// a configuration with longer lifetimes may be more than what is left of an authority that was
/// made under the one before.
fn hurry(root: &Root) -> Duration {
    Duration::from_secs(10).min(root.lifetime() / 5)
}

/// What the Secret holds.
#[derive(Debug)]
pub struct Authorities {
    /// The one that signs.
    pub current: Authority,
    /// The one that will.
    pub next: Option<Authority>,
    /// Those that did, as long as a certificate of theirs may be in use.
    pub previous: Vec<Root>,
    /// The end of that.
    pub previous_until: UnixMillis,
}

/// What is wrong with the Secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("its key {key} {source}")]
pub struct Damage {
    key: &'static str,
    source: AuthorityError,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, for now.
    Rest,
    /// Make the next authority.
    Prepare,
    /// Let the next one sign.
    Promote,
    /// Take the previous ones out of the bundle.
    Forget,
    /// Make a new one that signs at once: there is none that is good.
    StartOver,
}

impl Authorities {
    /// A first authority. `shown` is what API servers trust now: certificates of a Secret that was
    /// lost are still in use for a moment.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn start(
        shown: Vec<Root>,
        lifetimes: &Lifetimes,
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        let current = Authority::generate(lifetimes.authority, now)?;
        let previous =
            shown.into_iter().filter(|root| root.is_valid(now)).take(MOST_PREVIOUS).collect();
        // Replicas wait for one grace time before they use the new one.
        Ok(Self {
            current,
            next: None,
            previous,
            previous_until: later(now, lifetimes.grace() * 3),
        })
    }

    /// Reads what a Secret holds.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, Damage> {
        let text = |key: &str| data.get(key).map_or(&[][..], |value| value.0.as_slice());
        let previous_until =
            std::str::from_utf8(text(PREVIOUS_UNTIL)).ok().and_then(|text| text.parse().ok());
        Ok(Self {
            current: read_authority(data, CURRENT)?,
            next: data.contains_key(NEXT.0).then(|| read_authority(data, NEXT)).transpose()?,
            previous: Root::all_in(text(PREVIOUS)),
            previous_until: UnixMillis::from_seconds(previous_until.unwrap_or(0)),
        })
    }

    /// What a Secret is to hold.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut insert = |key: &str, value: &str| {
            data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()))
        };
        for (names, authority) in [(CURRENT, Some(&self.current)), (NEXT, self.next.as_ref())] {
            if let Some(authority) = authority {
                insert(names.0, &authority.root().pem());
                insert(names.1, authority.key().expose_secret());
            }
        }
        if !self.previous.is_empty() {
            insert(PREVIOUS, &bundle(&self.previous));
            insert(PREVIOUS_UNTIL, &self.previous_until.seconds().to_string());
        }
        data
    }

    /// What API servers are to trust.
    #[must_use]
    pub fn trusted(&self) -> Vec<Root> {
        let with_keys =
            [Some(&self.current), self.next.as_ref()].into_iter().flatten().map(Authority::root);
        with_keys.chain(&self.previous).cloned().collect()
    }

    /// What comes next.
    #[must_use]
    pub fn step(&self, shown: &Shown, lifetimes: &Lifetimes, now: UnixMillis) -> Step {
        let next = self.next.as_ref().map(Authority::root).filter(|next| next.is_valid(now));
        let root = self.current.root();
        if !root.is_valid(now) {
            return if next.is_some() { Step::Promote } else { Step::StartOver };
        }
        if let Some(next) = next {
            let seen = shown.for_as_long(next, lifetimes.grace(), now);
            let late = now.until(root.until()) < hurry(root) && shown.since(next).is_some();
            return if seen || late { Step::Promote } else { Step::Rest };
        }
        if now.until(root.until()) < lifetimes.authority.min(root.lifetime()) / 3 {
            return Step::Prepare;
        }
        if !self.previous.is_empty() && now >= self.previous_until {
            Step::Forget
        } else {
            Step::Rest
        }
    }

    /// What there is after a step.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn after(
        mut self,
        step: Step,
        lifetimes: &Lifetimes,
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        match step {
            Step::Rest => {}
            Step::Prepare => self.next = Some(Authority::generate(lifetimes.authority, now)?),
            Step::Promote => {
                if let Some(next) = self.next.take() {
                    let old = std::mem::replace(&mut self.current, next);
                    self.previous.retain(|root| root.is_valid(now));
                    self.previous.insert(0, old.root().clone());
                    self.previous.truncate(MOST_PREVIOUS);
                    // A replica may have signed with it just now.
                    self.previous_until = later(now, lifetimes.leaf + lifetimes.grace());
                }
            }
            Step::Forget => self.previous.clear(),
            Step::StartOver => return Self::start(self.trusted(), lifetimes, now),
        }
        Ok(self)
    }
}

fn read_authority(
    data: &BTreeMap<String, ByteString>,
    (certificate, key): (&'static str, &'static str),
) -> Result<Authority, Damage> {
    let text = |key: &str| data.get(key).map_or(&[][..], |value| value.0.as_slice());
    let private = std::str::from_utf8(text(key)).unwrap_or_default();
    Authority::from_pem(text(certificate), SecretText::new(private.to_owned())).map_err(|source| {
        let key = if source == AuthorityError::NotACertificate { certificate } else { key };
        Damage { key, source }
    })
}

/// The PEM text of roots.
#[must_use]
pub fn bundle(roots: &[Root]) -> String {
    roots.iter().map(Root::pem).collect()
}

fn later(now: UnixMillis, by: Duration) -> UnixMillis {
    now.offset(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
}

/// What the webhook configuration shows to API servers, and since when, as far as this process has
/// seen.
#[derive(Debug, Default)]
pub struct Shown(Vec<(Root, UnixMillis)>);

impl Shown {
    /// The configuration was read.
    pub fn look(&mut self, roots: &[Root], now: UnixMillis) {
        let since = |root: &Root| self.since(root).unwrap_or(now);
        self.0 = roots.iter().map(|root| (root.clone(), since(root))).collect();
    }

    /// Since when a root is shown.
    #[must_use]
    pub fn since(&self, root: &Root) -> Option<UnixMillis> {
        self.0.iter().find(|(shown, _)| shown == root).map(|(_, since)| *since)
    }

    /// Whether a root has been shown for that long.
    #[must_use]
    pub fn for_as_long(&self, root: &Root, time: Duration, now: UnixMillis) -> bool {
        self.since(root).is_some_and(|since| since.until(now) >= time)
    }
}

/// The certificate that a replica has.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Who signed it.
    pub root: Root,
    /// The end of it.
    pub until: UnixMillis,
}

impl Signed {
    /// Whether it is good at this moment.
    #[must_use]
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        now < self.until && self.root.is_valid(now)
    }

    /// Whether it is to be replaced by one that `current` signs.
    #[must_use]
    pub fn is_due(
        &self,
        current: &Root,
        shown: &Shown,
        lifetimes: &Lifetimes,
        now: UnixMillis,
    ) -> bool {
        if self.root == *current {
            // A new one could not last longer than its authority.
            return now.until(self.until) < lifetimes.leaf / 3 && self.until < current.until();
        }
        let worthless = !self.is_valid(now) || shown.since(&self.root).is_none();
        // One that lasts as long as its root cannot be signed anew.
        let ends_with_root = self.until >= self.root.until();
        let late = ends_with_root
            && now.until(self.until) < hurry(&self.root)
            && shown.since(current).is_some();
        worthless || late || shown.for_as_long(current, lifetimes.grace(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis::from_seconds(1_800_000_000);
    const LIFETIMES: Lifetimes =
        Lifetimes { authority: Duration::from_hours(900), leaf: Duration::from_hours(24) };

    fn at(hours: u64) -> UnixMillis {
        UnixMillis::from_seconds(START.seconds() + hours * 3600)
    }

    fn shown(authorities: &Authorities, since: UnixMillis) -> Shown {
        let mut shown = Shown::default();
        shown.look(&authorities.trusted(), since);
        shown
    }

    #[test]
    fn an_authority_is_replaced_in_phases() {
        let first = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        let step =
            |state: &Authorities, since, now| state.step(&shown(state, since), &LIFETIMES, now);
        assert_eq!(step(&first, START, at(599)), Step::Rest);
        assert_eq!(step(&first, START, at(601)), Step::Prepare);
        let old = first.current.root().clone();
        let prepared = first.after(Step::Prepare, &LIFETIMES, at(601)).unwrap();
        assert_eq!((prepared.current.root(), prepared.trusted().len()), (&old, 2));
        assert_eq!(
            prepared.step(&Shown::default(), &LIFETIMES, at(700)),
            Step::Rest,
            "not shown at all"
        );
        let soon = UnixMillis::from_seconds(at(601).seconds() + 59);
        assert_eq!(step(&prepared, at(601), soon), Step::Rest);
        let soon = UnixMillis::from_seconds(at(601).seconds() + 60);
        assert_eq!(step(&prepared, at(601), soon), Step::Promote);
        let promoted = prepared.after(Step::Promote, &LIFETIMES, soon).unwrap();
        let promoted = Authorities::read(&promoted.data()).unwrap();
        assert!(promoted.next.is_none() && *promoted.current.root() != old);
        assert_eq!(promoted.previous, [old]);
        assert_eq!(
            step(&promoted, at(601), at(625)),
            Step::Rest,
            "the last old certificate is still good"
        );
        assert_eq!(step(&promoted, at(601), at(626)), Step::Forget);
        let last = promoted.after(Step::Forget, &LIFETIMES, at(626)).unwrap();
        assert_eq!(last.trusted(), [last.current.root().clone()]);
        assert_eq!(step(&last, at(626), at(626)), Step::Rest);
    }

    #[test]
    fn without_an_authority_that_is_good_one_signs_at_once() {
        let first = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        assert_eq!(first.step(&Shown::default(), &LIFETIMES, at(901)), Step::StartOver);
        assert_eq!(
            first.step(&Shown::default(), &LIFETIMES, at(0).offset(-86_400_000)),
            Step::StartOver
        );
        let prepared = first.after(Step::Prepare, &LIFETIMES, at(890)).unwrap();
        assert_eq!(prepared.step(&Shown::default(), &LIFETIMES, at(901)), Step::Promote);
    }

    #[test]
    fn an_authority_made_under_shorter_lifetimes_is_replaced_before_its_end() {
        let short = Lifetimes { authority: Duration::from_secs(45), leaf: Duration::from_secs(15) };
        let after = |seconds: u64| UnixMillis::from_seconds(START.seconds() + seconds);
        let first = Authorities::start(Vec::new(), &short, START).unwrap();
        let signed =
            Signed { root: first.current.root().clone(), until: first.current.root().until() };
        assert_eq!(first.step(&shown(&first, START), &LIFETIMES, after(31)), Step::Prepare);
        let prepared = first.after(Step::Prepare, &LIFETIMES, after(31)).unwrap();
        let seen = shown(&prepared, after(32));
        assert_eq!(prepared.step(&seen, &LIFETIMES, after(35)), Step::Rest);
        assert_eq!(
            prepared.step(&Shown::default(), &LIFETIMES, after(37)),
            Step::Rest,
            "nobody would trust it"
        );
        assert_eq!(prepared.step(&seen, &LIFETIMES, after(37)), Step::Promote);
        let promoted = prepared.after(Step::Promote, &LIFETIMES, after(37)).unwrap();
        assert!(signed.is_due(promoted.current.root(), &seen, &LIFETIMES, after(38)));
    }

    #[test]
    fn a_lost_secret_leaves_in_the_bundle_what_is_in_use_for_a_moment() {
        let lost = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        let again = Authorities::start(lost.trusted(), &LIFETIMES, at(1)).unwrap();
        assert_eq!(again.previous, [lost.current.root().clone()]);
        assert_eq!(again.step(&Shown::default(), &LIFETIMES, at(1).offset(179_000)), Step::Rest);
        assert_eq!(again.step(&Shown::default(), &LIFETIMES, at(1).offset(180_000)), Step::Forget);
        assert!(
            Authorities::start(lost.trusted(), &LIFETIMES, at(901)).unwrap().previous.is_empty()
        );
    }

    #[test]
    fn a_damaged_secret_is_noticed_and_named_without_its_content() {
        let data = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap().data();
        for key in ["ca.crt", "ca.key"] {
            for spoilt in [None, Some("spoilt")] {
                let mut data = data.clone();
                data.remove(key);
                data.extend(
                    spoilt.map(|text| (key.to_owned(), ByteString(text.as_bytes().to_vec()))),
                );
                let message = Authorities::read(&data).unwrap_err().to_string();
                assert!(message.contains(key) && !message.contains("spoilt"), "{message}");
            }
        }
    }

    #[test]
    fn a_replica_renews_its_certificate_in_time_and_changes_authority_only_when_it_is_known() {
        let old = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        let (old_root, both) =
            (old.current.root().clone(), old.after(Step::Prepare, &LIFETIMES, START).unwrap());
        let new_root = both.next.as_ref().unwrap().root().clone();
        let leaf = Signed { root: old_root.clone(), until: at(24) };
        let known = shown(&both, START);
        assert!(!leaf.is_due(&old_root, &known, &LIFETIMES, at(16)));
        assert!(leaf.is_due(&old_root, &known, &LIFETIMES, at(17)));
        assert!(
            !leaf.is_due(&new_root, &known, &LIFETIMES, START),
            "not every API server knows it yet"
        );
        assert!(leaf.is_due(&new_root, &known, &LIFETIMES, at(1)));
        let mut unknown = Shown::default();
        unknown.look(std::slice::from_ref(&old_root), START);
        assert!(!leaf.is_due(&new_root, &unknown, &LIFETIMES, at(20)));
        assert!(
            leaf.is_due(&new_root, &unknown, &LIFETIMES, at(25)),
            "the old one is worth nothing"
        );
        assert!(leaf.is_due(&new_root, &Shown::default(), &LIFETIMES, at(1)), "nor this one");
        let last = Signed { root: old_root.clone(), until: old_root.until() };
        assert!(!last.is_due(&old_root, &known, &LIFETIMES, at(899)));
    }
}
