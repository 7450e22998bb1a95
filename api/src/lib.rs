//! The Kubernetes types of the two-factor system.
//!
//! This crate reads manifests, from the API server or as YAML text, and turns them into validated
//! users of `twofactor_core`, or into problems that name file, line and field. The CRDs make an API
//! server reject the same problems. There is no I/O and no Kubernetes client in this crate, so that
//! the sidecar can link it too.
//!
//! [`user`] and [`realm`] are what an administrator writes, and [`validate`] checks it by the rules
//! that the schema has too; [`manifest`] reads it from text, [`crds`] describes it to an API
//! server, and [`labels`] holds the names that several programs must spell alike.

pub mod crds;
pub mod labels;
pub mod manifest;
pub mod realm;
mod rules;
mod schema;
pub mod tokens;
pub mod user;
pub mod validate;
mod yaml;

pub use realm::TwoFactorRealm;
pub use user::TwoFactorUser;
