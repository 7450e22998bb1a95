//! Tests of the store: in memory, in one Redis, behind Sentinels and in a Redis Cluster.

mod acl;
mod cluster;
mod conformance;
mod heartbeat;
mod hostile;
mod kept_writes;
mod loaded_scripts;
mod outages;
mod owner;
mod races;
mod redis;
mod sentinel;
mod settings;
mod users;
