//! Signs certificates of servers, and replaces them and their authorities before they end. The
//! webhook's replicas and the Redis of the chart use it. No I/O.

pub mod authority;
pub mod rotation;
pub mod served;
pub mod validity;
