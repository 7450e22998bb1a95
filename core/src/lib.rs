//! The domain of the two-factor system, and nothing else.
//!
//! This crate has no I/O, no clock and no global randomness: callers pass in bytes, text, the time
//! and a source of randomness. So everything in it can be tested with fixed inputs.
//!
//! In the order in which a user passes through: [`user`] and [`seed`] describe a user ([`import`]
//! reads a seed of another system), [`record`] combines both into a value that [`seal`] encrypts
//! under a [`key`], [`names`] says where it is stored, [`totp`] computes and compares codes, and
//! [`decision`] decides whether a submitted code is accepted, within the [`limits`] and with an
//! entry in the [`audit`] history. [`context`] is what a code was requested for, in which [`links`]
//! are made unclickable, and [`token`] what a service can show to others after a success.

pub mod audit;
pub mod code;
pub mod context;
pub mod decision;
pub mod host;
pub mod import;
pub mod key;
pub mod language;
pub mod limits;
pub mod links;
pub mod message;
pub mod names;
pub mod otpauth;
pub mod owner;
pub mod proof;
pub mod provider;
pub mod qr;
pub mod realm;
pub mod record;
pub mod seal;
pub mod secret;
pub mod seed;
pub mod settings;
pub mod template;
pub mod time;
pub mod token;
pub mod totp;
pub mod user;
pub mod webhook;
