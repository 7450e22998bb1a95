//! Decides the next step for the authority and for a replica's certificate. It takes the current
//! state, the roots that are shown to clients (the webhook configuration shows them to API servers,
//! the credentials to services) and the time, and returns the step and the state after it. No I/O.
//!
//! An authority is replaced in phases, so that every certificate fits every bundle that a client
//! may still use:
//!
//! 1. the next authority is created, and the bundle contains it beside the current one;
//! 2. after the bundle has contained it for the grace time, so that every client knows it, it
//!    becomes the current one;
//! 3. servers replace their certificates; the previous authority stays in the bundle until the
//!    last old certificate expires;
//! 4. the bundle contains only the current one.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use thiserror::Error;
use twofactor_core::secret::SecretText;
use twofactor_core::time::UnixMillis;

use super::authority::{Authority, AuthorityError, Root};

/// Maximum number of previous roots, including those in the bundle when the Secret is lost.
const MOST_PREVIOUS: usize = 4;

const CURRENT: (&str, &str) = ("ca.crt", "ca.key");
const NEXT: (&str, &str) = ("next.crt", "next.key");
const PREVIOUS: &str = "previous.crt";
const PREVIOUS_UNTIL: &str = "previous.until";

/// Lifetimes of certificates in whole seconds, at least ten for the authority.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Lifetime of the authority.
    pub authority: Duration,
    /// Lifetime of a server's certificate, much shorter than the authority's.
    pub leaf: Duration,
    /// Maximum grace time.
    pub longest_grace: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            authority: Duration::from_hours(365 * 24),
            leaf: Duration::from_hours(24),
            longest_grace: Duration::from_mins(1),
        }
    }
}

impl Lifetimes {
    /// Grace time, in which every client sees a change of the bundle.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.longest_grace.min(self.authority / 10)
    }
}

/// Whether a root ends soon, and the grace time of its successor, which is shown since `since`,
/// would outlast it. After a change to longer lifetimes, the grace time may be longer than the rest
/// of an authority with a short lifetime.
fn is_late(root: &Root, since: UnixMillis, lifetimes: &Lifetimes, now: UnixMillis) -> bool {
    let soon = Duration::from_secs(10).min(root.lifetime() / 5);
    since.until(root.until()) < lifetimes.grace() && now.until(root.until()) < soon
}

/// The authorities in the Secret.
#[derive(Debug)]
pub struct Authorities {
    /// The authority that signs.
    pub current: Authority,
    /// The authority that will sign next.
    pub next: Option<Authority>,
    /// The authorities that signed before, while their certificates may be in use.
    pub previous: Vec<Root>,
    /// The time until which the previous authorities stay in the bundle.
    pub previous_until: UnixMillis,
}

/// The error of an invalid Secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("its key {key} {source}")]
pub struct Damage {
    key: &'static str,
    source: AuthorityError,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do nothing for now.
    Wait,
    /// Create the next authority.
    Prepare,
    /// Make the next authority the current one.
    Promote,
    /// Remove the previous authorities from the bundle.
    Forget,
    /// Create an authority that signs at once, because none is valid.
    StartOver,
}

impl Authorities {
    /// Creates a first authority. `shown` are the roots that clients trust now, because
    /// certificates of a lost Secret are still in use for a short time.
    ///
    /// # Errors
    /// Fails if the operating system has no randomness.
    pub fn start(
        shown: Vec<Root>,
        lifetimes: &Lifetimes,
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        let current = Authority::generate(lifetimes.authority, now)?;
        let previous =
            shown.into_iter().filter(|root| root.is_valid(now)).take(MOST_PREVIOUS).collect();
        // Replicas wait for one grace time before they use the new authority.
        Ok(Self {
            current,
            next: None,
            previous,
            previous_until: later(now, lifetimes.grace() * 3),
        })
    }

    /// Reads the data of the Secret.
    ///
    /// # Errors
    /// Names the first invalid key.
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

    /// The data for the Secret.
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

    /// The roots that clients have to trust, first the one that signs.
    #[must_use]
    pub fn trusted(&self) -> Vec<Root> {
        let with_keys =
            [Some(&self.current), self.next.as_ref()].into_iter().flatten().map(Authority::root);
        with_keys.chain(&self.previous).cloned().collect()
    }

    /// Decides the next step.
    #[must_use]
    pub fn step(&self, shown: &Shown, lifetimes: &Lifetimes, now: UnixMillis) -> Step {
        let next = self.next.as_ref().map(Authority::root).filter(|next| next.is_valid(now));
        let root = self.current.root();
        if !root.is_valid(now) {
            return if next.is_some() { Step::Promote } else { Step::StartOver };
        }
        if let Some(next) = next {
            let seen = shown.for_as_long(next, lifetimes.grace(), now);
            let late = shown.since(next).is_some_and(|since| is_late(root, since, lifetimes, now));
            return if seen || late { Step::Promote } else { Step::Wait };
        }
        if now.until(root.until()) < lifetimes.authority.min(root.lifetime()) / 3 {
            return Step::Prepare;
        }
        if !self.previous.is_empty() && now >= self.previous_until {
            Step::Forget
        } else {
            Step::Wait
        }
    }

    /// Applies a step. `shown` are the roots that clients trust now.
    ///
    /// # Errors
    /// Fails if the operating system has no randomness.
    pub fn after(
        mut self,
        step: Step,
        shown: &Shown,
        lifetimes: &Lifetimes,
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        match step {
            Step::Wait => {}
            Step::Prepare => self.next = Some(Authority::generate(lifetimes.authority, now)?),
            Step::Promote => {
                if let Some(next) = self.next.take() {
                    let old = std::mem::replace(&mut self.current, next);
                    self.previous.retain(|root| root.is_valid(now));
                    self.previous.insert(0, old.root().clone());
                    self.previous.truncate(MOST_PREVIOUS);
                    // A replica may have signed with the old authority just now.
                    self.previous_until = later(now, lifetimes.leaf + lifetimes.grace());
                }
            }
            Step::Forget => self.previous.clear(),
            // The Secret may be an old backup, which lacks the roots that clients trust and the
            // servers' certificates fit. They stay as long as after a lost Secret: a copied key of
            // theirs is no reason to start over.
            Step::StartOver => {
                let mut trusted = shown.roots();
                trusted.extend(self.trusted().into_iter().filter(|it| shown.since(it).is_none()));
                return Self::start(trusted, lifetimes, now);
            }
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

/// Writes roots as PEM.
#[must_use]
pub fn bundle(roots: &[Root]) -> String {
    roots.iter().map(Root::pem).collect()
}

fn later(now: UnixMillis, by: Duration) -> UnixMillis {
    now.offset(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
}

/// The roots that are shown to clients, and since when, as this process has observed.
#[derive(Debug, Default)]
pub struct Shown(Vec<(Root, UnixMillis)>);

impl Shown {
    /// Records the roots that are shown.
    pub fn record(&mut self, roots: &[Root], now: UnixMillis) {
        let since = |root: &Root| self.since(root).unwrap_or(now);
        self.0 = roots.iter().map(|root| (root.clone(), since(root))).collect();
    }

    /// Returns the roots that are shown.
    #[must_use]
    pub fn roots(&self) -> Vec<Root> {
        self.0.iter().map(|(root, _)| root.clone()).collect()
    }

    /// The time since which a root is shown.
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

/// The certificate of a replica.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The root of the authority that signed it.
    pub root: Root,
    /// The time at which it expires.
    pub until: UnixMillis,
}

impl Signed {
    /// Whether the certificate is valid now.
    #[must_use]
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        now < self.until && self.root.is_valid(now)
    }

    /// Whether it must be replaced by a certificate that `current` signs.
    #[must_use]
    pub fn is_due(
        &self,
        current: &Root,
        shown: &Shown,
        lifetimes: &Lifetimes,
        now: UnixMillis,
    ) -> bool {
        if self.root == *current {
            // If it expires with its authority, a new one would not be valid for longer.
            return now.until(self.until) < lifetimes.leaf / 3 && self.until < current.until();
        }
        let unusable = !self.is_valid(now) || shown.since(&self.root).is_none();
        // A certificate that expires with its root cannot be renewed by the same root.
        let ends_with_root = self.until >= self.root.until();
        let late = ends_with_root
            && shown.since(current).is_some_and(|since| is_late(&self.root, since, lifetimes, now));
        unusable || late || shown.for_as_long(current, lifetimes.grace(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis::from_seconds(1_800_000_000);
    const LIFETIMES: Lifetimes = Lifetimes {
        authority: Duration::from_hours(900),
        leaf: Duration::from_hours(24),
        longest_grace: Duration::from_mins(1),
    };

    fn at(hours: u64) -> UnixMillis {
        UnixMillis::from_seconds(START.seconds() + hours * 3600)
    }

    fn shown(authorities: &Authorities, since: UnixMillis) -> Shown {
        let mut shown = Shown::default();
        shown.record(&authorities.trusted(), since);
        shown
    }

    #[test]
    fn an_authority_is_replaced_in_phases() {
        let first = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        let step =
            |state: &Authorities, since, now| state.step(&shown(state, since), &LIFETIMES, now);
        assert_eq!(step(&first, START, at(599)), Step::Wait);
        assert_eq!(step(&first, START, at(601)), Step::Prepare);
        let old = first.current.root().clone();
        let prepared = first.after(Step::Prepare, &Shown::default(), &LIFETIMES, at(601)).unwrap();
        assert_eq!((prepared.current.root(), prepared.trusted().len()), (&old, 2));
        assert_eq!(
            prepared.step(&Shown::default(), &LIFETIMES, at(700)),
            Step::Wait,
            "not in the configuration"
        );
        let soon = UnixMillis::from_seconds(at(601).seconds() + 59);
        assert_eq!(step(&prepared, at(601), soon), Step::Wait);
        let soon = UnixMillis::from_seconds(at(601).seconds() + 60);
        assert_eq!(step(&prepared, at(601), soon), Step::Promote);
        let promoted = prepared.after(Step::Promote, &Shown::default(), &LIFETIMES, soon).unwrap();
        let promoted = Authorities::read(&promoted.data()).unwrap();
        assert!(promoted.next.is_none() && *promoted.current.root() != old);
        assert_eq!(promoted.previous, [old]);
        assert_eq!(
            step(&promoted, at(601), at(625)),
            Step::Wait,
            "the last old certificate is still valid"
        );
        assert_eq!(step(&promoted, at(601), at(626)), Step::Forget);
        let last = promoted.after(Step::Forget, &Shown::default(), &LIFETIMES, at(626)).unwrap();
        assert_eq!(last.trusted(), [last.current.root().clone()]);
        assert_eq!(step(&last, at(626), at(626)), Step::Wait);
    }

    #[test]
    fn without_a_valid_authority_a_new_one_signs_at_once() {
        let first = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        assert_eq!(first.step(&Shown::default(), &LIFETIMES, at(901)), Step::StartOver);
        assert_eq!(
            first.step(&Shown::default(), &LIFETIMES, at(0).offset(-86_400_000)),
            Step::StartOver
        );
        let prepared = first.after(Step::Prepare, &Shown::default(), &LIFETIMES, at(890)).unwrap();
        assert_eq!(prepared.step(&Shown::default(), &LIFETIMES, at(901)), Step::Promote);
    }

    #[test]
    fn an_authority_made_under_shorter_lifetimes_is_replaced_before_its_end() {
        let (authority, leaf) = (Duration::from_secs(45), Duration::from_secs(15));
        let short = Lifetimes { authority, leaf, ..LIFETIMES };
        let after = |seconds: u64| UnixMillis::from_seconds(START.seconds() + seconds);
        let first = Authorities::start(Vec::new(), &short, START).unwrap();
        let signed =
            Signed { root: first.current.root().clone(), until: first.current.root().until() };
        assert_eq!(first.step(&shown(&first, START), &LIFETIMES, after(31)), Step::Prepare);
        let prepared =
            first.after(Step::Prepare, &Shown::default(), &LIFETIMES, after(31)).unwrap();
        let seen = shown(&prepared, after(32));
        assert_eq!(prepared.step(&seen, &LIFETIMES, after(35)), Step::Wait);
        assert_eq!(
            prepared.step(&Shown::default(), &LIFETIMES, after(37)),
            Step::Wait,
            "no API server would trust it"
        );
        assert_eq!(prepared.step(&seen, &LIFETIMES, after(37)), Step::Promote);
        let promoted =
            prepared.after(Step::Promote, &Shown::default(), &LIFETIMES, after(37)).unwrap();
        assert!(signed.is_due(promoted.current.root(), &seen, &LIFETIMES, after(38)));
    }

    #[test]
    fn the_grace_time_is_waited_for_whatever_the_lifetime_as_long_as_it_fits() {
        for seconds in [15, 45, 600, 3600 * 900] {
            let (authority, leaf) =
                (Duration::from_secs(seconds), Duration::from_secs(seconds / 4));
            let lifetimes = Lifetimes { authority, leaf, ..LIFETIMES };
            let first = Authorities::start(Vec::new(), &lifetimes, START).unwrap();
            let old = first.current.root().clone();
            let since = START.offset(i64::try_from(seconds * 700).unwrap());
            assert_eq!(first.step(&shown(&first, START), &lifetimes, since), Step::Prepare);
            let prepared =
                first.after(Step::Prepare, &Shown::default(), &lifetimes, since).unwrap();
            let grace = i64::try_from(lifetimes.grace().as_millis()).unwrap();
            let (seen, before, after) =
                (shown(&prepared, since), since.offset(grace - 1), since.offset(grace));
            assert_eq!(prepared.step(&seen, &lifetimes, before), Step::Wait, "{seconds} s");
            assert_eq!(prepared.step(&seen, &lifetimes, after), Step::Promote, "{seconds} s");
            let next = prepared.next.as_ref().unwrap().root();
            let signed = Signed { until: old.until(), root: old };
            assert!(!signed.is_due(next, &seen, &lifetimes, before), "{seconds} s");
            assert!(signed.is_due(next, &seen, &lifetimes, after), "{seconds} s");
        }
    }

    #[test]
    fn after_a_lost_secret_the_roots_in_use_stay_in_the_bundle_for_a_short_time() {
        let lost = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        let again = Authorities::start(lost.trusted(), &LIFETIMES, at(1)).unwrap();
        assert_eq!(again.previous, [lost.current.root().clone()]);
        assert_eq!(again.step(&Shown::default(), &LIFETIMES, at(1).offset(179_000)), Step::Wait);
        assert_eq!(again.step(&Shown::default(), &LIFETIMES, at(1).offset(180_000)), Step::Forget);
        assert!(
            Authorities::start(lost.trusted(), &LIFETIMES, at(901)).unwrap().previous.is_empty()
        );
    }

    #[test]
    fn an_old_backup_of_the_secret_takes_no_root_in_use_out_of_the_bundle() {
        let backup = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        let present = Authorities::start(Vec::new(), &LIFETIMES, at(800)).unwrap();
        let (in_use, known) = (present.trusted(), shown(&present, at(800)));
        assert_eq!(backup.step(&known, &LIFETIMES, at(901)), Step::StartOver);
        let again = backup.after(Step::StartOver, &known, &LIFETIMES, at(901)).unwrap();
        assert_eq!(again.previous, in_use, "and not the one that has ended");
        let step = |seconds: i64| {
            let now = at(901).offset(seconds * 1000);
            again.step(&shown(&again, at(901)), &LIFETIMES, now)
        };
        assert_eq!((step(179), step(180)), (Step::Wait, Step::Forget), "not for longer");
        // No root is there twice.
        let next = present.after(Step::Prepare, &Shown::default(), &LIFETIMES, at(801)).unwrap();
        let known = shown(&next, at(801));
        let again = next.after(Step::StartOver, &known, &LIFETIMES, at(802)).unwrap();
        assert_eq!(again.previous.len(), 2);
    }

    #[test]
    fn the_error_of_an_invalid_secret_names_the_key_and_not_its_content() {
        let data = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap().data();
        for key in ["ca.crt", "ca.key"] {
            for invalid in [None, Some("invalid!")] {
                let mut data = data.clone();
                data.remove(key);
                data.extend(
                    invalid.map(|text| (key.to_owned(), ByteString(text.as_bytes().to_vec()))),
                );
                let message = Authorities::read(&data).unwrap_err().to_string();
                assert!(message.contains(key) && !message.contains("invalid!"), "{message}");
            }
        }
    }

    #[test]
    fn a_replica_renews_its_certificate_in_time_and_changes_authority_only_when_it_is_known() {
        let old = Authorities::start(Vec::new(), &LIFETIMES, START).unwrap();
        let (old_root, both) = (
            old.current.root().clone(),
            old.after(Step::Prepare, &Shown::default(), &LIFETIMES, START).unwrap(),
        );
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
        unknown.record(std::slice::from_ref(&old_root), START);
        assert!(!leaf.is_due(&new_root, &unknown, &LIFETIMES, at(20)));
        assert!(leaf.is_due(&new_root, &unknown, &LIFETIMES, at(25)), "the old one is unusable");
        assert!(
            leaf.is_due(&new_root, &Shown::default(), &LIFETIMES, at(1)),
            "this one is unusable too"
        );
        let last = Signed { root: old_root.clone(), until: old_root.until() };
        assert!(!last.is_due(&old_root, &known, &LIFETIMES, at(899)));
    }
}
