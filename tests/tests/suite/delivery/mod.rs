//! Tests of the delivery channels, against real servers.

mod email;
mod fuzz;
mod headers;
mod http_answers;
mod sms;
mod smtp;
mod webhook;
