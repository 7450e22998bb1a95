//! The operator against a real API server, under its real RBAC rules.

mod cluster;
mod crashes;
mod days;
mod imports;
mod realms;
mod schema;
mod seeds;
mod users;
