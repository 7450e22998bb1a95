//! Talks to the API server: connections, requests, conditions, Events, delays, and Secrets that are
//! made once.

pub mod backoff;
pub mod client;
pub mod conditions;
pub mod events;
pub mod owned_secret;
pub mod request;
pub mod watch_signs;
