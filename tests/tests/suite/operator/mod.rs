//! The operator against a real API server, under its real RBAC rules.

mod certificates;
pub(crate) mod cluster;
mod crashes;
mod days;
mod failures;
mod imports;
mod lease;
mod realms;
mod redis;
mod replicas;
mod schema;
mod seeds;
mod tokens;
mod users;
