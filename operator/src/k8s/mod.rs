//! Talks to the API server: requests, Events, pauses, and the operator's own Secrets.

pub mod backoff;
pub mod conditions;
pub mod events;
pub mod owned_secret;
pub mod request;
