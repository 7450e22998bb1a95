//! Answers requests to generate and to verify a code.
//!
//! Order of the files, each of which uses those below it only: [`generate`] and [`verify`];
//! [`uniform`], the same with uniform answers; [`send`]; [`ask_store`]; [`service`]; [`records`].

mod answer_time;
mod ask_store;
pub mod background;
pub mod generate;
pub mod outcome_log;
pub mod records;
pub mod requests;
mod send;
pub mod service;
pub mod tokens;
mod uniform;
pub mod verify;
