//! Tests of the delivery channels, against real servers.

mod email;
mod sms;
mod webhook;
