//! The domain of the two-factor system, and nothing else.
//!
//! What enters: bytes, text, a moment in time and a source of randomness, all passed in by the
//! caller. What leaves: validated values, codes, sealed records and decisions. There is no I/O, no
//! clock and no global randomness in this crate, so everything in it can be tested with fixed
//! inputs.
//!
//! The way of a user through the modules: [`user`] and [`seed`] describe one, [`record`] makes that
//! a value which [`seal`] encrypts under a [`key`], [`names`] says where it is stored, [`totp`]
//! computes and compares its codes, and [`decision`] says what a submitted code is worth, within
//! the [`limits`] and for the [`audit`]. [`context`] is what a code was asked for, and [`token`]
//! what a service can show to others after a success.

pub mod audit;
pub mod code;
pub mod context;
pub mod decision;
pub mod key;
pub mod limits;
pub mod message;
pub mod names;
pub mod otpauth;
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
