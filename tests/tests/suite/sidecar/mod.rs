//! Tests of the sidecar program: its HTTP API, `dev`, `serve`, tokens, metrics and documentation.

mod browser;
mod clients;
mod contract;
mod credentials;
mod dev;
mod fuzz;
mod generated_clients;
mod ipv6;
mod logs;
mod manifests;
mod metrics;
mod serve;
mod standards;
mod tokens;
mod uniform;
