//! The Kubernetes types of the two-factor system.
//!
//! What enters: manifests, from the API server or as YAML text. What leaves: validated users of
//! `twofactor_core`, problems that name file, line and field, and the CRDs that make an API server
//! refuse the same things. There is no I/O and no Kubernetes client in this crate, so the sidecar
//! links it too.
//!
//! [`user`] and [`realm`] are what an administrator writes and [`validate`] what becomes of it;
//! [`manifest`] reads it from text, [`crds`] describes it to an API server, [`labels`] holds the
//! names that every part of the system must spell alike.

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
