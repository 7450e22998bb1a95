//! Carries out the decision about a seed: creates, repairs or rotates the user's Secret, and
//! returns the seed in it or why there is none.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use thiserror::Error;
use twofactor_api::labels;
use twofactor_core::record::Provenance;
use twofactor_core::seed::Seed;

use super::fetch::{self, FetchError, Fetched, Own};
use super::ownership;
use super::secret::{self, SecretInputs};
use super::seed_decision::{Decision, SecretState, SeedInputs, SeedProblem, SeedSource, decide};
use super::subject::Subject;
use crate::failpoint::{self, Step};
use crate::k8s::events::Notice;
use crate::k8s::request::{self, ApiError};
use crate::state::{Runtime, random};

/// Maximum number of attempts, if the Secret is created and deleted in between.
const ATTEMPTS: usize = 3;

/// Why the Secret could not be applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// It could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It could not be written.
    #[error("cannot write the Secret {secret}: {source}")]
    Write {
        /// Name of the Secret.
        secret: String,
        /// The error.
        source: ApiError,
    },
    /// Another client creates and deletes it repeatedly.
    #[error("the Secret {0} is created and deleted by another client")]
    SecretKeepsChanging(String),
}

/// The seed of a user.
#[derive(Clone, Debug)]
pub enum SeedOutcome {
    /// The Secret holds a seed.
    Seed {
        /// The seed, as the Secret holds it.
        seed: Seed,
        /// Whether it was made just now.
        fresh: bool,
        /// The request for a new seed that this one answers.
        rotated: Option<String>,
    },
    /// There is no usable seed.
    Unusable(SeedProblem),
    /// The predecessor's Secret has to be deleted first.
    WaitingForPredecessor,
    /// Redis, which knows whether the seed can be restored, does not answer.
    WaitingForStore,
}

/// The result of applying.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The seed.
    pub outcome: SeedOutcome,
    /// Whether this is the first Secret of a new user, so that keys of its username in Redis belong
    /// to an earlier user.
    pub newcomer: bool,
    /// Events to emit.
    pub notices: Vec<Notice>,
    /// Version of the Secret that holds the seed, for the driver to remember as an own write.
    pub secret_version: Option<String>,
    /// Whether a Secret without a living owner has proved itself and belongs to the user now.
    pub adopted: bool,
    /// What the record was made from, if another version of the operator or another master key
    /// has written the Secret, which is to be written again.
    pub outdated: Option<String>,
}

impl Applied {
    fn nothing(outcome: SeedOutcome) -> Self {
        Self {
            outcome,
            newcomer: false,
            notices: Vec::new(),
            secret_version: None,
            adopted: false,
            outdated: None,
        }
    }

    /// Nothing has to be done now, because the Secret of this version holds what it should, or
    /// what it should have held before, if that is `outdated`.
    pub fn unchanged(
        outcome: SeedOutcome,
        secret_version: String,
        outdated: Option<String>,
    ) -> Self {
        Self { secret_version: Some(secret_version), outdated, ..Self::nothing(outcome) }
    }

    /// The seed to publish.
    pub fn seed(&self) -> Option<&Seed> {
        match &self.outcome {
            SeedOutcome::Seed { seed, .. } => Some(seed),
            _ => None,
        }
    }

    /// The request for a new seed that this one answers.
    pub fn rotated(&self) -> Option<&str> {
        match &self.outcome {
            SeedOutcome::Seed { rotated, .. } => rotated.as_deref(),
            _ => None,
        }
    }
}

/// Decides about the seed, and makes the Secret hold it.
pub async fn apply(
    runtime: &Runtime,
    subject: &Subject<'_>,
    issuer: &str,
    fetched: Fetched,
) -> Result<Applied, ApplyError> {
    let applying = Applying { runtime, subject, issuer };
    let user = subject.user;
    let had_secret = fetched.had_secret;
    let rotated = user.status.as_ref().and_then(|status| status.rotated.as_deref());
    let mut own = fetched.own;
    for _ in 0..ATTEMPTS {
        let inputs = SeedInputs {
            found: own.as_ref().map(|own| &own.found),
            import: fetched.import.as_ref(),
            had_secret,
            hold: runtime.hold_new_seeds,
            rotate: applying.rotate(),
            rotated,
        };
        match (decide(&inputs, &subject.secret_name), own) {
            (Decision::Create(origin), _) => {
                // Only a new seed answers the request for one.
                let is_new = origin == SeedSource::New;
                let seed = match applying.origin(origin, rotated).await {
                    Ok(seed) => seed,
                    Err(outcome) => return Ok(Applied::nothing(outcome)),
                };
                let rotated = if is_new { applying.rotate() } else { rotated };
                if let Some(applied) = applying.create(seed, rotated, !had_secret).await? {
                    return Ok(applied);
                }
                own = Some(fetch::own(&runtime.client, subject).await?);
            }
            (
                Decision::Keep(seed),
                Some(Own {
                    secret: Some(secret),
                    found: SecretState::Ours { rotated, .. } | SecretState::Proven { rotated, .. },
                }),
            ) => {
                return applying.keep(&secret, seed, rotated).await;
            }
            (Decision::Rotate, Some(Own { secret: Some(secret), .. })) => {
                return applying.rotate_to(&secret).await;
            }
            (Decision::Refuse(refusal), _) => {
                return Ok(Applied::nothing(SeedOutcome::Unusable(refusal)));
            }
            (Decision::Wait, _) => return Ok(Applied::nothing(SeedOutcome::WaitingForPredecessor)),
            (Decision::Keep(_) | Decision::Rotate, _) => {
                own = Some(fetch::own(&runtime.client, subject).await?);
            }
        }
    }
    Err(ApplyError::SecretKeepsChanging(subject.secret_name.clone()))
}

/// The seed of a new Secret, by where it comes from.
enum ChosenSeed {
    Generated(Seed),
    Imported(Seed),
    Restored(Seed),
}

struct Applying<'a> {
    runtime: &'a Runtime,
    subject: &'a Subject<'a>,
    /// The issuer of users that set none.
    issuer: &'a str,
}

impl Applying<'_> {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.runtime.client.clone(), &self.subject.realm.namespace)
    }

    fn rotate(&self) -> Option<&str> {
        self.subject.annotation(labels::ROTATE_ANNOTATION)
    }

    fn wanted<'a>(&'a self, seed: &'a Seed, rotated: Option<&'a str>) -> SecretInputs<'a> {
        SecretInputs {
            user: self.subject.user,
            definition: &self.subject.definition,
            issuer: self.issuer,
            seed,
            rotated,
            proofs: &self.subject.realm.proofs,
        }
    }

    fn failed(&self, source: ApiError) -> ApplyError {
        ApplyError::Write { secret: self.subject.secret_name.clone(), source }
    }

    /// Returns the seed for a new Secret, or why there is none.
    async fn origin(
        &self,
        origin: SeedSource,
        rotated: Option<&str>,
    ) -> Result<ChosenSeed, SeedOutcome> {
        match origin {
            // A user from before this process may have been published without a Secret, if the
            // earlier process ended in between.
            SeedSource::New if self.rotate().is_none() && self.is_from_before() => {
                match self.published(None).await? {
                    Some(seed) => Ok(ChosenSeed::Restored(seed)),
                    None => Ok(ChosenSeed::Generated(Seed::generate(&mut random()))),
                }
            }
            SeedSource::New => Ok(ChosenSeed::Generated(Seed::generate(&mut random()))),
            SeedSource::Imported(seed) => Ok(ChosenSeed::Imported(seed)),
            SeedSource::Record => {
                self.published(rotated).await?.map(ChosenSeed::Restored).ok_or_else(|| {
                    SeedOutcome::Unusable(SeedProblem::Lost {
                        secret: self.subject.secret_name.clone(),
                    })
                })
            }
        }
    }

    /// Whether the user was created before this process started.
    fn is_from_before(&self) -> bool {
        let created = self.subject.user.metadata.creation_timestamp.as_ref();
        created.is_none_or(|created| created.0.as_millisecond() < self.runtime.started)
    }

    /// Returns the published seed of this user object and of this rotation.
    async fn published(&self, rotated: Option<&str>) -> Result<Option<Seed>, SeedOutcome> {
        let publisher = &self.subject.realm.publisher;
        let record = publisher.current(self.subject.pseudonym()).await;
        let record = record.map_err(|_| SeedOutcome::WaitingForStore)?;
        let wanted = Some(Provenance::new(&self.subject.uid, rotated));
        Ok(record.filter(|record| record.provenance == wanted).and_then(|record| record.seed))
    }

    /// Creates the Secret. Returns nothing if it exists already.
    async fn create(
        &self,
        source: ChosenSeed,
        rotated: Option<&str>,
        newcomer: bool,
    ) -> Result<Option<Applied>, ApplyError> {
        let (seed, fresh, notice) = match source {
            ChosenSeed::Generated(seed) if newcomer => (
                seed,
                true,
                Notice::normal(
                    "SecretCreated",
                    format!("The Secret {} with a new seed was created", self.subject.secret_name),
                ),
            ),
            ChosenSeed::Generated(seed) => (
                seed,
                true,
                Notice::normal(
                    "Rotated",
                    format!(
                        "The Secret {} was created with a new seed, as requested",
                        self.subject.secret_name
                    ),
                ),
            ),
            ChosenSeed::Imported(seed) => (
                seed,
                false,
                Notice::normal(
                    "SecretCreated",
                    format!(
                        "The Secret {} with the imported seed was created",
                        self.subject.secret_name
                    ),
                ),
            ),
            ChosenSeed::Restored(seed) => (
                seed,
                false,
                Notice::warning(
                    "SecretRestored",
                    format!(
                        "The Secret {} did not exist; it was restored with the same seed",
                        self.subject.secret_name
                    ),
                ),
            ),
        };
        let secret = secret::secret(&self.wanted(&seed, rotated));
        match request::within(self.secrets().create(&PostParams::default(), &secret)).await {
            Ok(created) => {
                failpoint::hit(Step::SecretCreated);
                let outcome =
                    SeedOutcome::Seed { seed, fresh, rotated: rotated.map(str::to_owned) };
                Ok(Some(Applied {
                    newcomer,
                    notices: vec![notice],
                    secret_version: created.resource_version(),
                    ..Applied::nothing(outcome)
                }))
            }
            Err(ApiError::AlreadyExists(_)) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Keeps the seed, and repairs what is derived from it.
    async fn keep(
        &self,
        secret: &Secret,
        seed: Seed,
        rotated: Option<String>,
    ) -> Result<Applied, ApplyError> {
        let mut secret_version = secret.resource_version();
        let mut notices = Vec::new();
        let name = &self.subject.secret_name;
        if let Some(patch) = secret::patch(secret, &self.wanted(&seed, rotated.as_deref())) {
            secret_version = self.patch(&patch).await?;
            notices.push(self.changed(secret));
        }
        let outcome = SeedOutcome::Seed { seed, fresh: false, rotated };
        let adopted = !secret::is_owned(secret, self.subject.user);
        if adopted {
            tracing::info!(user = %self.subject.reference, secret = name, "secret without an owner adopted with its seed");
        }
        Ok(Applied { notices, secret_version, adopted, ..Applied::nothing(outcome) })
    }

    /// Returns the Event about a Secret that was repaired.
    fn changed(&self, secret: &Secret) -> Notice {
        let (name, user) = (&self.subject.secret_name, self.subject.user);
        if !secret::is_owned(secret, user) {
            let note = format!(
                "The Secret {name} had no living owner and proved itself; it was adopted with its seed"
            );
            return Notice::normal("SecretAdopted", note);
        }
        if ownership::is_edited(secret, user, &self.subject.realm.proofs) {
            let note =
                format!("The Secret {name} was edited by another client; the seed in it is used");
            return Notice::warning("SecretEdited", note);
        }
        Notice::normal("SecretUpdated", format!("The Secret {name} was updated"))
    }

    /// Replaces the seed with a new one.
    async fn rotate_to(&self, secret: &Secret) -> Result<Applied, ApplyError> {
        let seed = Seed::generate(&mut random());
        let mut secret_version = secret.resource_version();
        if let Some(patch) = secret::patch(secret, &self.wanted(&seed, self.rotate())) {
            secret_version = self.patch(&patch).await?;
        }
        let notice = Notice::normal(
            "Rotated",
            format!("The Secret {} has a new seed, as requested", self.subject.secret_name),
        );
        let outcome =
            SeedOutcome::Seed { seed, fresh: true, rotated: self.rotate().map(str::to_owned) };
        Ok(Applied { notices: vec![notice], secret_version, ..Applied::nothing(outcome) })
    }

    async fn patch(&self, patch: &serde_json::Value) -> Result<Option<String>, ApplyError> {
        let parameters = PatchParams::default();
        let request = async {
            self.secrets().patch(&self.subject.secret_name, &parameters, &Patch::Merge(patch)).await
        };
        let written = request::within(request).await.map_err(|error| self.failed(error))?;
        failpoint::hit(Step::SecretUpdated);
        Ok(written.resource_version())
    }
}
