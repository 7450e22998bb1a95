//! The operator: turns `TwoFactorUser` resources into Secrets with seeds, and publishes them to the
//! sidecars.
//!
//! Enters: users, namespaces and Secrets of an API server. Leaves: a Secret for each user, sealed
//! records in Redis, and a status that says so. The Secret is the truth, Redis is a projection of
//! it.
//!
//! A user goes one way, a file each: [`user::fetch`] reads what there is, [`user::seed_decision`]
//! decides (without I/O) where the seed comes from, [`user::secret`] (without I/O) what the Secret
//! should be, [`user::apply`] writes it, [`user::publish`] hands the record to the sidecars,
//! [`user::status`] tells. [`user`] reads as these steps. Around them: [`watch`] keeps the
//! [`state::usernames`] of users and fills the [`state::queue`]; [`state::realms`] knows the keys
//! of each namespace; [`redis::monitor`] notices a Redis that has lost something and has it
//! [`redis::refill`]ed; [`redis::cleanup`] removes what belongs to nobody.
//!
//! Whom a realm lets in: every replica knows it from [`state::realm_policies`]. The leader works
//! out each realm's own record in [`realm`], with the providers of its [`realm::providers`] Secret;
//! [`realm::credentials`] lets services in, by a login to Redis ([`realm::credentials::logins`])
//! and a Secret; [`realm::status`] tells what came of it; and [`watch::pods`] reports pods that
//! wait for something.
//!
//! Of several operators one leads, which the [`process::lease`] decides. All admit pods:
//! [`webhook`] decides about them, with [`webhook::certificates`] that the API server trusts.

pub mod cli;
pub mod failpoint;
pub mod k8s;
pub mod metrics;
pub mod process;
pub mod realm;
pub mod redis;
pub mod state;
pub mod user;
pub mod watch;
pub mod webhook;
