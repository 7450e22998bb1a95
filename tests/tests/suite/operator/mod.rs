//! Tests of the operator on a real API server, under its real RBAC rules.

mod admission;
mod certificates;
mod crashes;
mod failures;
mod gitops;
mod heartbeat;
mod imports;
mod keys;
mod lease;
mod many_realms;
mod namespaces;
mod obstacles;
mod outages;
mod privileges;
mod reads;
mod realms;
mod redis;
mod redis_access;
mod replicas;
mod restore;
mod schema;
mod seeds;
mod tokens;
mod two_installations;
mod users;
mod withdrawals;
