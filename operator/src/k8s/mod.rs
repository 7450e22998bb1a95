//! Talks to the API server: requests, conditions, Events, delays, and Secrets that are made once.

pub mod backoff;
pub mod conditions;
pub mod events;
pub mod owned_secret;
pub mod request;
