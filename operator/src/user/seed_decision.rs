//! Decides where a user's seed comes from, given the state of the user's Secret and of an imported
//! seed. No I/O and no randomness: the caller generates the seed.
//!
//! A seed is generated once. The Secret is the source of truth. A seed whose Secret was deleted is
//! restored from the published record, or is lost until a new one is requested. It is never
//! replaced silently.

use thiserror::Error;
use twofactor_api::labels;
use twofactor_core::import::ImportError;
use twofactor_core::seed::Seed;

/// The state of the user's Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretState {
    /// It does not exist.
    Absent,
    /// This user owns it.
    Ours {
        /// The seed in it, or why it is unusable.
        seed: Result<Seed, UnusableSeed>,
        /// The request for a new seed that this one answers.
        rotated: Option<String>,
    },
    /// It has no living owner, and proves that its seed is the one of this user.
    Proven {
        /// The seed in it.
        seed: Seed,
        /// The request for a new seed that this one answers.
        rotated: Option<String>,
    },
    /// A deleted user of the same name owns it, or it is being deleted, so it will disappear soon.
    Predecessors,
    /// An operator has written it, it has no owner, and it does not prove itself.
    NotProven(Doubt),
    /// Another owner has it.
    NotOurs,
}

/// Why a Secret without an owner does not prove itself.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Doubt {
    /// The annotation is missing or no proof.
    #[error("its annotation {} is missing or damaged", labels::PROOF_ANNOTATION)]
    NoProof,
    /// Neither of the operator's master keys has made the proof.
    #[error("its proof was made with another master key")]
    OtherKey,
    /// The proof is about something else, or the Secret was edited.
    #[error(
        "its proof is of another namespace or user, or the Secret was edited after it was proved"
    )]
    Wrong,
    /// Without an owner, only the label shows that the operator may change it.
    #[error("its label {}: {} is missing", labels::MANAGED_BY_LABEL, labels::MANAGED_BY)]
    NotLabelled,
    /// The operator writes only Secrets of the type Opaque.
    #[error("its type is not Opaque")]
    NotOpaque,
}

/// Why a key of a Secret holds no seed. The message never contains the value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UnusableSeed {
    /// The Secret has no such key.
    #[error("the Secret {secret} has no key {key}")]
    NoKey {
        /// Name of the Secret.
        secret: String,
        /// Name of the key.
        key: String,
    },
    /// The key's value is not a seed.
    #[error("the key {key} of the Secret {secret} {error}")]
    NotASeed {
        /// Name of the Secret.
        secret: String,
        /// Name of the key.
        key: String,
        /// The error of the value.
        error: ImportError,
    },
}

/// Why no seed is imported, in one sentence for every reason. The author of a user may be allowed
/// to read no Secret, and must not learn which Secrets there are, or what they contain.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "no seed can be imported from the key {key} of the Secret {secret}: the Secret must exist in this namespace \
     with the label {}: \"{}\", must not be that of a user, and the key must hold a seed that fits spec.totp",
    labels::IMPORT_LABEL,
    labels::IMPORT_ALLOWED
)]
pub struct ImportRefused {
    /// Name of the Secret.
    pub secret: String,
    /// Name of the key.
    pub key: String,
}

/// What the decision depends on.
#[derive(Clone, Debug)]
pub struct SeedInputs<'a> {
    /// The state of the user's Secret; absent if it was not looked up, because creating it
    /// shows whether it exists.
    pub found: Option<&'a SecretState>,
    /// The imported seed, if the user imports one.
    pub import: Option<&'a Result<Seed, ImportRefused>>,
    /// Whether this user has had a Secret before.
    pub had_secret: bool,
    /// Whether no new seeds are made, because Secrets are being restored.
    pub hold: bool,
    /// The requested rotation.
    pub rotate: Option<&'a str>,
    /// The last rotation that was carried out, according to the user's status.
    pub rotated: Option<&'a str>,
}

/// The decision about the Secret and its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Create the Secret.
    Create(SeedSource),
    /// Keep the Secret with this seed, and repair the rest of it.
    Keep(Seed),
    /// Put a new seed into the Secret.
    Rotate,
    /// Leave everything as it is, and publish the user without a seed.
    Refuse(SeedProblem),
    /// Wait until the predecessor's Secret is deleted.
    Wait,
}

/// Where the seed of a new Secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeedSource {
    /// A new seed is generated.
    New,
    /// The imported seed.
    Imported(Seed),
    /// The seed of the published record, if it exists.
    Record,
}

/// Why there is no seed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SeedProblem {
    /// No seed is imported.
    #[error("{0}")]
    Import(ImportRefused),
    /// The user's Secret does not hold a valid seed.
    #[error(
        "{0}; write a seed there, or ask for a new one with the annotation twofactor.fountainai.io/rotate on the user"
    )]
    Invalid(UnusableSeed),
    /// Another owner has the Secret.
    #[error(
        "there is a Secret {secret} that this user does not own: delete or rename it, or rename the user"
    )]
    NotOurs {
        /// Name of the Secret.
        secret: String,
    },
    /// The Secret has no owner, and does not prove that its seed is the one of this user.
    #[error(
        "there is a Secret {secret} without an owner, and {doubt}: restore another one, delete it, or import its seed \
         from a copy under another name with the label {}: \"{}\"",
        labels::IMPORT_LABEL,
        labels::IMPORT_ALLOWED
    )]
    NotProven {
        /// Name of the Secret.
        secret: String,
        /// What is wrong with it.
        doubt: Doubt,
    },
    /// There is no Secret, and the administrator is restoring Secrets.
    #[error(
        "there is no Secret {secret} yet, and the operator makes no new seeds while --hold-new-seeds is set: restore \
         it, or ask for a new seed with the annotation twofactor.fountainai.io/rotate on the user"
    )]
    Held {
        /// Name of the Secret.
        secret: String,
    },
    /// The Secret was deleted, and the seed cannot be restored.
    #[error(
        "the Secret {secret} was deleted and its seed cannot be restored: ask for a new one with the annotation \
         twofactor.fountainai.io/rotate on the user, and enrol the user again"
    )]
    Lost {
        /// Name of the Secret.
        secret: String,
    },
}

/// Decides what to do. `secret` is the name of the user's Secret.
pub fn decide(inputs: &SeedInputs<'_>, secret: &str) -> Decision {
    let imported = match inputs.import {
        Some(Err(refused)) => return Decision::Refuse(SeedProblem::Import(refused.clone())),
        Some(Ok(seed)) => Some(seed.clone()),
        None => None,
    };
    match inputs.found {
        Some(SecretState::Predecessors) => Decision::Wait,
        Some(SecretState::NotOurs) => {
            Decision::Refuse(SeedProblem::NotOurs { secret: secret.to_owned() })
        }
        Some(SecretState::NotProven(doubt)) => {
            Decision::Refuse(SeedProblem::NotProven { secret: secret.to_owned(), doubt: *doubt })
        }
        None | Some(SecretState::Absent) => match imported {
            Some(seed) => Decision::Create(SeedSource::Imported(seed)),
            None if asked(inputs.rotate, inputs.rotated) => Decision::Create(SeedSource::New),
            None if inputs.had_secret => Decision::Create(SeedSource::Record),
            None if inputs.hold => {
                Decision::Refuse(SeedProblem::Held { secret: secret.to_owned() })
            }
            None => Decision::Create(SeedSource::New),
        },
        Some(SecretState::Ours { seed, rotated }) => {
            keep_or_rotate(inputs, imported, seed.clone(), rotated.as_deref())
        }
        Some(SecretState::Proven { seed, rotated }) => {
            keep_or_rotate(inputs, imported, Ok(seed.clone()), rotated.as_deref())
        }
    }
}

/// Decides about a Secret that belongs to the user.
fn keep_or_rotate(
    inputs: &SeedInputs<'_>,
    imported: Option<Seed>,
    seed: Result<Seed, UnusableSeed>,
    rotated: Option<&str>,
) -> Decision {
    if let Some(seed) = imported {
        return Decision::Keep(seed);
    }
    match seed {
        _ if asked(inputs.rotate, rotated) => Decision::Rotate,
        Ok(seed) => Decision::Keep(seed),
        Err(unusable) => Decision::Refuse(SeedProblem::Invalid(unusable)),
    }
}

/// Whether a rotation is requested that was not carried out.
fn asked(rotate: Option<&str>, rotated: Option<&str>) -> bool {
    rotate.is_some() && rotate != rotated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(byte: u8) -> Seed {
        Seed::from_bytes(vec![byte; 20]).unwrap()
    }

    fn ours(rotated: Option<&str>) -> SecretState {
        SecretState::Ours { seed: Ok(seed(1)), rotated: rotated.map(str::to_owned) }
    }

    fn unusable() -> UnusableSeed {
        UnusableSeed::NoKey { secret: "alice-totp".to_owned(), key: "secret".to_owned() }
    }

    const NEW: SeedInputs<'_> = SeedInputs {
        found: None,
        import: None,
        had_secret: false,
        hold: false,
        rotate: None,
        rotated: None,
    };

    fn decide_on(inputs: &SeedInputs<'_>) -> Decision {
        decide(inputs, "alice-totp")
    }

    #[test]
    fn a_new_user_gets_a_new_seed() {
        assert_eq!(decide_on(&NEW), Decision::Create(SeedSource::New));
        assert_eq!(
            decide_on(&SeedInputs { rotate: Some("1"), found: Some(&SecretState::Absent), ..NEW }),
            Decision::Create(SeedSource::New)
        );
    }

    #[test]
    fn a_secret_of_ours_is_kept_also_when_the_status_was_never_written() {
        for had_secret in [true, false] {
            let found = ours(None);
            assert_eq!(
                decide_on(&SeedInputs { found: Some(&found), had_secret, ..NEW }),
                Decision::Keep(seed(1))
            );
        }
    }

    #[test]
    fn a_secret_that_vanished_is_never_silently_replaced() {
        let lost = SeedInputs { found: Some(&SecretState::Absent), had_secret: true, ..NEW };
        assert_eq!(decide_on(&lost), Decision::Create(SeedSource::Record));
        let handled = SeedInputs { rotate: Some("1"), rotated: Some("1"), ..lost.clone() };
        assert_eq!(decide_on(&handled), Decision::Create(SeedSource::Record));
        let asked = SeedInputs { rotate: Some("2"), rotated: Some("1"), ..lost };
        assert_eq!(decide_on(&asked), Decision::Create(SeedSource::New));
    }

    #[test]
    fn while_new_seeds_are_held_only_a_request_makes_one() {
        let held = SeedInputs { found: Some(&SecretState::Absent), hold: true, ..NEW };
        assert!(matches!(decide_on(&held), Decision::Refuse(SeedProblem::Held { .. })));
        let lost = SeedInputs { had_secret: true, ..held.clone() };
        assert_eq!(decide_on(&lost), Decision::Create(SeedSource::Record));
        let asked = SeedInputs { rotate: Some("1"), ..held.clone() };
        assert_eq!(decide_on(&asked), Decision::Create(SeedSource::New));
        let proven = SecretState::Proven { seed: seed(1), rotated: None };
        assert_eq!(
            decide_on(&SeedInputs { found: Some(&proven), ..held }),
            Decision::Keep(seed(1))
        );
    }

    #[test]
    fn a_rotation_is_carried_out_once() {
        let (before, after) = (ours(Some("1")), ours(Some("2")));
        let inputs = SeedInputs { had_secret: true, rotate: Some("2"), rotated: Some("1"), ..NEW };
        assert_eq!(
            decide_on(&SeedInputs { found: Some(&before), ..inputs.clone() }),
            Decision::Rotate
        );
        assert_eq!(
            decide_on(&SeedInputs { found: Some(&after), ..inputs.clone() }),
            Decision::Keep(seed(1))
        );
        assert_eq!(
            decide_on(&SeedInputs { found: Some(&before), rotate: None, ..inputs }),
            Decision::Keep(seed(1)),
            "removing the annotation requests nothing"
        );
    }

    #[test]
    fn a_secret_of_another_owner_is_never_adopted_and_one_of_a_predecessor_is_awaited() {
        for had_secret in [true, false] {
            let with = |found| {
                decide_on(&SeedInputs { found: Some(found), had_secret, rotate: Some("1"), ..NEW })
            };
            assert!(matches!(
                with(&SecretState::NotOurs),
                Decision::Refuse(SeedProblem::NotOurs { .. })
            ));
            assert_eq!(with(&SecretState::Predecessors), Decision::Wait);
            assert!(matches!(
                with(&SecretState::NotProven(Doubt::Wrong)),
                Decision::Refuse(SeedProblem::NotProven { doubt: Doubt::Wrong, .. })
            ));
        }
    }

    #[test]
    fn a_secret_that_proves_itself_is_kept_unless_a_new_seed_is_requested() {
        let found = SecretState::Proven { seed: seed(1), rotated: Some("1".to_owned()) };
        for had_secret in [true, false] {
            let inputs = SeedInputs { found: Some(&found), had_secret, ..NEW };
            assert_eq!(decide_on(&inputs), Decision::Keep(seed(1)));
            let answered = SeedInputs { rotate: Some("1"), ..inputs.clone() };
            assert_eq!(decide_on(&answered), Decision::Keep(seed(1)));
            assert_eq!(decide_on(&SeedInputs { rotate: Some("2"), ..inputs }), Decision::Rotate);
        }
    }

    #[test]
    fn an_invalid_secret_is_refused_until_a_rotation_is_requested() {
        let found = SecretState::Ours { seed: Err(unusable()), rotated: None };
        let inputs = SeedInputs { found: Some(&found), had_secret: true, ..NEW };
        assert_eq!(decide_on(&inputs), Decision::Refuse(SeedProblem::Invalid(unusable())));
        assert_eq!(decide_on(&SeedInputs { rotate: Some("1"), ..inputs }), Decision::Rotate);
    }

    #[test]
    fn an_imported_seed_takes_precedence_over_an_existing_secret() {
        let (import, found) = (Ok(seed(2)), ours(None));
        let inputs =
            SeedInputs { import: Some(&import), had_secret: true, rotate: Some("1"), ..NEW };
        assert_eq!(decide_on(&inputs), Decision::Create(SeedSource::Imported(seed(2))));
        assert_eq!(
            decide_on(&SeedInputs { found: Some(&found), ..inputs.clone() }),
            Decision::Keep(seed(2))
        );
        let refused = ImportRefused { secret: "old".to_owned(), key: "secret".to_owned() };
        let import = Err(refused.clone());
        assert_eq!(
            decide_on(&SeedInputs { import: Some(&import), found: Some(&found), ..inputs }),
            Decision::Refuse(SeedProblem::Import(refused))
        );
    }
}
