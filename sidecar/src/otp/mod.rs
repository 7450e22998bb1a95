//! Answers requests to generate and to verify a code.
//!
//! Order of the files, each of which uses those below it only: [`generate`] and [`verify`];
//! [`uniform`], the same with uniform answers; [`send`]; [`decide`]; [`service`]; [`records`].

mod answer_time;
pub mod background;
mod decide;
pub mod generate;
pub mod outcome_log;
pub mod records;
pub mod requests;
mod send;
pub mod service;
pub mod tokens;
mod uniform;
pub mod verify;
