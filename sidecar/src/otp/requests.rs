//! Validated requests, and what they lead to.

use std::sync::Arc;

use twofactor_core::code::Code;
use twofactor_core::context::Context;
use twofactor_core::time::UnixMillis;
use twofactor_core::token::Audience;
use twofactor_core::user::{DeliveryMethod, Username};

use crate::audit::Origin;
use crate::otp::records::{CurrentUser, Realm};

/// A request for a code.
#[derive(Debug)]
pub struct CodeRequest {
    pub username: Username,
    /// What the user confirms with the code.
    pub context: Option<Context>,
    pub origin: Origin,
}

/// A request to verify a code.
#[derive(Debug)]
pub struct VerifyRequest {
    pub username: Username,
    pub code: Code,
    /// The context that the code was asked for with.
    pub context: Option<Context>,
    /// The audience of the token, where one is wanted.
    pub audience: Option<Audience>,
    pub origin: Origin,
}

/// A code in the OTP log, and what is needed to send it.
#[derive(Debug)]
pub struct Issued {
    pub user: CurrentUser,
    pub realm: Arc<Realm>,
    pub code: Code,
    pub expires_at: UnixMillis,
    pub asked_at: UnixMillis,
}

/// A code that was delivered.
#[derive(Debug)]
pub struct Generated {
    pub code: Code,
    pub expires_at: UnixMillis,
    pub channel: DeliveryMethod,
}
