//! Talks to the API server: connections, requests, watches of one object, conditions, Events,
//! delays, and Secrets that are made once.

pub mod backoff;
pub mod broken_watch;
pub mod client;
pub mod conditions;
pub mod events;
pub mod named_object;
pub mod owned_secret;
pub mod request;
pub mod watch_signs;
