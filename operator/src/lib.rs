//! The operator: turns `TwoFactorUser` resources into Secrets with seeds, and publishes them to the
//! sidecars.
//!
//! Enters: users, namespaces and Secrets of an API server. Leaves: a Secret for each user, sealed
//! records in Redis, and a status that says so. The Secret is the truth, Redis is a projection of
//! it.
//!
//! A user goes one way, a file each: [`fetch`] reads what there is, [`seed`] decides (without I/O)
//! where the seed comes from, [`build`] (without I/O) what the Secret should be, [`apply`] writes
//! it, [`publish`] hands the record to the sidecars, [`status`] tells. [`reconcile`] reads as these
//! steps. Around them: [`watch`] keeps the [`index`] of users and fills the [`queue`]; [`realms`]
//! knows the keys of each namespace; [`guard`] notices a Redis that has lost something and has it
//! [`refill`]ed; [`sweep`] removes what belongs to nobody.
//!
//! Whom a realm lets in: every replica knows it from [`policies`]. The leader works out each
//! realm's own record in [`records`], with the providers of its [`delivery`] Secret;
//! [`credentials`] lets services in, by a login to Redis ([`access`]) and a Secret;
//! [`realm_status`] tells what came of it; and [`watch::pods`] reports pods that wait for
//! something.
//!
//! Of several operators one leads, which the [`lease`] decides. All admit pods: [`webhook`] decides
//! about them, with [`certificates`] that the API server trusts.

pub mod access;
pub mod api;
pub mod apply;
pub mod backoff;
pub mod build;
pub mod certificates;
pub mod cli;
pub mod context;
pub mod crash;
pub mod credentials;
pub mod delivery;
pub mod events;
pub mod failures;
pub mod fetch;
pub mod guard;
pub mod index;
pub mod lead;
pub mod lease;
pub mod master_key;
pub mod metrics;
pub mod own_secret;
pub mod pods;
pub mod policies;
pub mod publish;
pub mod queue;
pub mod realm_status;
pub mod realms;
pub mod reconcile;
pub mod records;
pub mod redis_password;
pub mod redis_settings;
pub mod refill;
pub mod run;
pub mod seed;
pub mod status;
pub mod sweep;
pub mod tasks;
pub mod token_key;
pub mod watch;
pub mod webhook;
