//! Tests of the delivery channels, against real servers.

mod email;
mod fuzz;
mod headers;
mod http_answers;
mod provider_rules;
mod proxy;
mod sms;
mod sms_receiver;
mod smtp;
mod webhook;
