//! Gives every `TwoFactorUser` a Secret with a seed and publishes the user to the sidecars.
//!
//! The Secret is the source of truth. The records in Redis can be rebuilt from it at any time; the
//! OTP log, used steps and failures cannot. Every replica admits pods, and one of them, the leader,
//! reconciles users and realms.
//!
//! The layers, of which each may use those below it, as the test `structure` checks:
//!
//! 1. `main` is the entry point; [`testing`] exports what the tests need.
//! 2. [`cli`] reads flags.
//! 3. `process` starts, supervises and ends the tasks of one replica; `self_test` checks an
//!    installation.
//! 4. `redis` keeps Redis complete and clean.
//! 5. `user` reconciles one `TwoFactorUser`.
//! 6. `realm` reconciles one `TwoFactorRealm`; `watch` follows the API server; `webhook` admits
//!    pods.
//! 7. `state` holds what the process knows, and starts nothing.
//! 8. `k8s` talks to the API server; `certificates` signs certificates of servers; `metrics`
//!    counts; `failpoint` ends the process at a point that a test chooses.

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

mod certificates;
mod failpoint;
mod k8s;
mod metrics;
mod process;
mod realm;
mod redis;
mod self_test;
mod state;
mod user;
mod watch;
mod webhook;
