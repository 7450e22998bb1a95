//! Gives every `TwoFactorUser` a Secret with a seed and publishes the user to the sidecars.
//!
//! The Secret is the source of truth; Redis holds a projection of it that can be rebuilt at any
//! time. Every replica admits pods, and one of them, the leader, reconciles users and realms.
//!
//! The layers, of which each may use those below it, as the test `structure` checks:
//!
//! 1. [`cli`] reads flags; `process` starts, supervises and ends the tasks of one replica.
//! 2. `redis` keeps Redis complete and clean; `user` reconciles one `TwoFactorUser`.
//! 3. `realm` reconciles one `TwoFactorRealm`; `watch` follows the API server; `webhook` admits
//!    pods.
//! 4. `state` holds what the process knows, and starts nothing.
//! 5. `k8s` talks to the API server; `metrics` counts; `failpoint` crashes where a test wants it.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    clippy::missing_errors_doc,
    reason = "these lints protect the users of a public library; this crate is a program"
)]

pub mod cli;
pub mod testing;

mod failpoint;
mod k8s;
mod metrics;
mod process;
mod realm;
mod redis;
mod state;
mod user;
mod watch;
mod webhook;
