//! Carries the decision about a seed out. Enters: a user and what was found. Leaves: a Secret in
//! the API server, and the seed that is in it; or why there is none.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use thiserror::Error;
use twofactor_api::{TwoFactorUser, labels};
use twofactor_core::record::Provenance;
use twofactor_core::seed::Seed;
use twofactor_core::user::UserDefinition;

use crate::failpoint::{self, Step};
use crate::k8s::events::Notice;
use crate::k8s::request::{self, ApiError};
use crate::realm::record;
use crate::state::queue::{self, reference};
use crate::state::realms::Realm;
use crate::state::{Context, random};
use crate::user::fetch::{self, FetchError, Fetched, Own};
use crate::user::secret::{self, SecretInputs};
use crate::user::seed_decision::{
    Decision, SecretState, SeedInputs, SeedProblem, SeedSource, decide,
};

/// How often a Secret may come and go between looking and creating before this is left for later.
const ATTEMPTS: usize = 3;

/// Why the Secret is not as it should be.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// It could not be read again.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It could not be written.
    #[error("cannot write the Secret {secret}: {source}")]
    Write {
        /// Which one.
        secret: String,
        /// Why.
        source: ApiError,
    },
    /// It comes and goes.
    #[error("the Secret {0} is created and deleted by somebody else")]
    SecretKeepsChanging(String),
}

/// A user's seed.
#[derive(Clone, Debug)]
pub enum SeedOutcome {
    /// It is there.
    Seed {
        /// The seed, as the Secret holds it.
        seed: Seed,
        /// Whether it was made just now.
        fresh: bool,
        /// The request for a new seed that this one answers.
        rotated: Option<String>,
    },
    /// There is none that could be used.
    Unusable(SeedProblem),
    /// The predecessor's Secret has to go first.
    WaitingForPredecessor,
    /// Only the store knows whether the seed can be restored, and it does not answer.
    WaitingForStore,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The seed.
    pub outcome: SeedOutcome,
    /// Whether this is the first Secret of a new user: what the store holds under their username is
    /// somebody else's.
    pub newcomer: bool,
    /// What there is to tell.
    pub notices: Vec<Notice>,
}

impl Applied {
    fn nothing(outcome: SeedOutcome) -> Self {
        Self { outcome, newcomer: false, notices: Vec::new() }
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

/// Decides about the seed of `user` and makes the Secret hold it.
pub async fn apply(
    context: &Context,
    realm: &Realm,
    user: &TwoFactorUser,
    definition: &UserDefinition,
    fetched: Fetched,
) -> Result<Applied, ApplyError> {
    let name = labels::secret_name(&user.name_any());
    let issuer = record::issuer(context, &realm.namespace);
    let applying = Applying { context, realm, user, definition, name, issuer };
    let had_secret = fetched.had_secret;
    let rotated = user.status.as_ref().and_then(|status| status.rotated.as_deref());
    let mut own = fetched.own;
    for _ in 0..ATTEMPTS {
        let inputs = SeedInputs {
            found: own.as_ref().map(|own| &own.found),
            import: fetched.import.as_ref(),
            had_secret,
            rotate: applying.rotate(),
            rotated,
        };
        match (decide(&inputs, &applying.name), own) {
            (Decision::Create(origin), _) => {
                let record = origin == SeedSource::Record;
                let seed = match applying.origin(origin, rotated).await {
                    Ok(seed) => seed,
                    Err(outcome) => return Ok(Applied::nothing(outcome)),
                };
                let rotated = if record { rotated } else { applying.rotate() };
                if let Some(applied) = applying.create(seed, rotated, !had_secret).await? {
                    return Ok(applied);
                }
                own = Some(fetch::own(&context.client, user).await?);
            }
            (
                Decision::Keep(seed),
                Some(Own { secret: Some(secret), found: SecretState::Ours { rotated, .. } }),
            ) => {
                let rotated = if fetched.import.is_some() {
                    applying.rotate().map(str::to_owned)
                } else {
                    rotated
                };
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
                own = Some(fetch::own(&context.client, user).await?);
            }
        }
    }
    Err(ApplyError::SecretKeepsChanging(applying.name))
}

/// Where a new Secret's seed was taken from.
enum ChosenSeed {
    Generated(Seed),
    Imported(Seed),
    Restored(Seed),
}

struct Applying<'a> {
    context: &'a Context,
    realm: &'a Realm,
    user: &'a TwoFactorUser,
    definition: &'a UserDefinition,
    name: String,
    /// Of users who have none of their own.
    issuer: String,
}

impl Applying<'_> {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), &self.realm.namespace)
    }

    fn rotate(&self) -> Option<&str> {
        self.user.annotations().get(labels::ROTATE_ANNOTATION).map(String::as_str)
    }

    fn wanted<'a>(&'a self, seed: &'a Seed, rotated: Option<&'a str>) -> SecretInputs<'a> {
        SecretInputs {
            user: self.user,
            definition: self.definition,
            issuer: &self.issuer,
            seed,
            rotated,
        }
    }

    fn failed(&self, source: ApiError) -> ApplyError {
        ApplyError::Write { secret: self.name.clone(), source }
    }

    /// The seed for a Secret that is to be created, or why there is none.
    async fn origin(
        &self,
        origin: SeedSource,
        rotated: Option<&str>,
    ) -> Result<ChosenSeed, SeedOutcome> {
        match origin {
            // From before this process: it may have got as far as publishing a seed and no further.
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
                    SeedOutcome::Unusable(SeedProblem::Lost { secret: self.name.clone() })
                })
            }
        }
    }

    /// Whether the user was there when this process began.
    fn is_from_before(&self) -> bool {
        let created = self.user.metadata.creation_timestamp.as_ref();
        created.is_none_or(|created| created.0.as_millisecond() < self.context.started)
    }

    /// The seed that the store has of this very user, of this rotation.
    async fn published(&self, rotated: Option<&str>) -> Result<Option<Seed>, SeedOutcome> {
        let pseudonym = self.realm.publisher.keys().pseudonym(&self.definition.username);
        let record = self
            .realm
            .publisher
            .current(pseudonym)
            .await
            .map_err(|_| SeedOutcome::WaitingForStore)?;
        let wanted = Some(Provenance::new(&self.user.uid().unwrap_or_default(), rotated));
        Ok(record.filter(|record| record.provenance == wanted).and_then(|record| record.seed))
    }

    /// Creates the Secret; nothing when there is one already.
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
                    format!("The Secret {} with a new seed was created", self.name),
                ),
            ),
            ChosenSeed::Generated(seed) => (
                seed,
                true,
                Notice::normal(
                    "Rotated",
                    format!(
                        "The Secret {} was created anew with a new seed, as asked for",
                        self.name
                    ),
                ),
            ),
            ChosenSeed::Imported(seed) => (
                seed,
                false,
                Notice::normal(
                    "SecretCreated",
                    format!("The Secret {} with the imported seed was created", self.name),
                ),
            ),
            ChosenSeed::Restored(seed) => (
                seed,
                false,
                Notice::warning(
                    "SecretRestored",
                    format!(
                        "The Secret {} was gone; it was restored with the same seed",
                        self.name
                    ),
                ),
            ),
        };
        let secret = secret::secret(&self.wanted(&seed, rotated));
        match request::within(self.secrets().create(&PostParams::default(), &secret)).await {
            Ok(created) => {
                self.context
                    .own_writes
                    .secret_written(&reference(self.user), created.resource_version());
                failpoint::hit(Step::SecretCreated);
                Ok(Some(Applied {
                    outcome: SeedOutcome::Seed { seed, fresh, rotated: rotated.map(str::to_owned) },
                    newcomer,
                    notices: vec![notice],
                }))
            }
            Err(ApiError::AlreadyExists(_)) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Keeps the Secret, and repairs what is derived from the seed.
    async fn keep(
        &self,
        secret: &Secret,
        seed: Seed,
        rotated: Option<String>,
    ) -> Result<Applied, ApplyError> {
        let reference = queue::reference(self.user);
        self.context.own_writes.secret_written(&reference, secret.resource_version());
        let mut notices = Vec::new();
        if let Some(patch) = secret::patch(secret, &self.wanted(&seed, rotated.as_deref())) {
            self.patch(&patch).await?;
            notices.push(Notice::normal(
                "SecretUpdated",
                format!("The Secret {} was brought up to date", self.name),
            ));
        }
        Ok(Applied {
            notices,
            ..Applied::nothing(SeedOutcome::Seed { seed, fresh: false, rotated })
        })
    }

    /// Puts a new seed into the Secret.
    async fn rotate_to(&self, secret: &Secret) -> Result<Applied, ApplyError> {
        let seed = Seed::generate(&mut random());
        if let Some(patch) = secret::patch(secret, &self.wanted(&seed, self.rotate())) {
            self.patch(&patch).await?;
        }
        let notice = Notice::normal(
            "Rotated",
            format!("The Secret {} got a new seed, as asked for", self.name),
        );
        let outcome =
            SeedOutcome::Seed { seed, fresh: true, rotated: self.rotate().map(str::to_owned) };
        Ok(Applied { notices: vec![notice], ..Applied::nothing(outcome) })
    }

    async fn patch(&self, patch: &serde_json::Value) -> Result<(), ApplyError> {
        let parameters = PatchParams::default();
        let request =
            async { self.secrets().patch(&self.name, &parameters, &Patch::Merge(patch)).await };
        let written = request::within(request).await.map_err(|error| self.failed(error))?;
        self.context.own_writes.secret_written(&reference(self.user), written.resource_version());
        failpoint::hit(Step::SecretUpdated);
        Ok(())
    }
}
