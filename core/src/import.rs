//! Reads the seed that an administrator imports, in the forms that other systems and authenticator
//! apps export: base32, an `otpauth://` URI, or the `otpauth-migration://` URI of Google
//! Authenticator's export.
//!
//! An export may hold several accounts, one URI on each line or many in one migration URI. Then the
//! account that is named like the user is taken.

mod migration;

use percent_encoding::percent_decode_str;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::seed::{Seed, SeedError};
use crate::totp::TotpParameters;
use crate::user::Username;

/// The scheme of Google's key URI format.
const URI_SCHEME: &str = "otpauth://";
/// The scheme of Google Authenticator's export.
const MIGRATION_SCHEME: &str = "otpauth-migration://";

/// Reason why a text holds no seed for a user. The message never contains the seed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ImportError {
    /// The seed is invalid.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A URI is not in Google's key URI format.
    #[error("is not an otpauth URI like otpauth://totp/NAME?secret=BASE32")]
    NotAUri,
    /// The data of a migration URI are invalid.
    #[error("is not a complete export of Google Authenticator")]
    NotAnExport,
    /// The codes of the account depend on a counter.
    #[error("holds a counter-based account (hotp), and codes here are time-based (totp)")]
    CounterBased,
    /// The account computes codes in another way than the user's manifest says.
    #[error("says {0}: set it to the same")]
    Differs(String),
    /// It is not clear which account is that of the user.
    #[error("holds {accounts} accounts, and {named} of them are named like the user")]
    Accounts {
        /// The number of accounts.
        accounts: usize,
        /// The number of accounts with the user's name.
        named: usize,
    },
}

/// An account of an export.
struct Account {
    /// The name without the issuer.
    name: String,
    seed: Result<Seed, SeedError>,
    time_based: bool,
    algorithm: String,
    digits: String,
    period: String,
}

/// Reads the seed of `user`, whose codes are computed with `totp`.
///
/// # Errors
/// Says what is invalid, as a sentence that begins with the name of the field.
pub fn seed(text: &str, user: &Username, totp: &TotpParameters) -> Result<Seed, ImportError> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if !has_scheme(text, URI_SCHEME) && !has_scheme(text, MIGRATION_SCHEME) {
        return Ok(Seed::from_base32(text)?);
    }
    let mut accounts = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if has_scheme(line, MIGRATION_SCHEME) {
            accounts.append(&mut migration::accounts(line)?);
        } else {
            accounts.push(account(line)?);
        }
    }
    let account = choose(accounts, user)?;
    if !account.time_based {
        return Err(ImportError::CounterBased);
    }
    for (name, field, found, expected) in [
        ("algorithm", "algorithm", &account.algorithm, totp.algorithm().name().to_owned()),
        ("digits", "digits", &account.digits, totp.digits().to_string()),
        ("period", "periodSeconds", &account.period, totp.period().to_string()),
    ] {
        if *found != expected {
            return Err(ImportError::Differs(format!(
                "{name} {found}, but the user's totp.{field} is {expected}"
            )));
        }
    }
    Ok(account.seed?)
}

fn has_scheme(text: &str, scheme: &str) -> bool {
    text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

/// Returns the only account, or the only one that is named like the user.
fn choose(mut accounts: Vec<Account>, user: &Username) -> Result<Account, ImportError> {
    let found = accounts.len();
    if found > 1 {
        accounts.retain(|account| account.name == user.as_str());
    }
    let named = accounts.len();
    match accounts.pop() {
        Some(account) if named == 1 => Ok(account),
        _ => Err(ImportError::Accounts { accounts: found, named }),
    }
}

/// Reads a URI of Google's key URI format.
fn account(uri: &str) -> Result<Account, ImportError> {
    let rest = uri.get(URI_SCHEME.len()..).filter(|_| has_scheme(uri, URI_SCHEME));
    let (kind, rest) = rest.and_then(|rest| rest.split_once('/')).ok_or(ImportError::NotAUri)?;
    let (label, query) = rest.split_once('?').ok_or(ImportError::NotAUri)?;
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let secret = parameter(query, "secret")?.ok_or(ImportError::NotAUri)?;
    let or = |name, default: &str| -> Result<String, ImportError> {
        // The value is shown in messages, so only a short word is taken.
        let value = parameter(query, name)?;
        let value = value.as_deref().map_or(default, String::as_str);
        let is_word = value.len() <= 16 && value.bytes().all(|byte| byte.is_ascii_graphic());
        if is_word { Ok(value.to_ascii_uppercase()) } else { Err(ImportError::NotAUri) }
    };
    let algorithm = or("algorithm", "SHA1")?;
    let algorithm = algorithm.strip_prefix("HMAC").unwrap_or(&algorithm).replace('-', "");
    Ok(Account {
        name: account_name(&decoded(label)?).to_owned(),
        seed: Seed::from_base32(&secret),
        time_based: match kind.to_ascii_lowercase().as_str() {
            "totp" => true,
            "hotp" => false,
            _ => return Err(ImportError::NotAUri),
        },
        algorithm,
        digits: or("digits", "6")?,
        period: or("period", "30")?,
    })
}

/// Returns a parameter of a query, which may be written once.
fn parameter(query: &str, name: &str) -> Result<Option<Zeroizing<String>>, ImportError> {
    let mut values = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| key.eq_ignore_ascii_case(name));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some((_, value)), None) => decoded(value).map(Some),
        _ => Err(ImportError::NotAUri),
    }
}

fn decoded(text: &str) -> Result<Zeroizing<String>, ImportError> {
    // The memory is reserved at once, because growing would leave copies that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    bytes.extend(percent_decode_str(text));
    let text = std::str::from_utf8(&bytes).map_err(|_| ImportError::NotAUri)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Returns the name in a label such as `Issuer:name`.
fn account_name(label: &str) -> &str {
    label.split_once(':').map_or(label, |(_, name)| name).trim()
}

#[cfg(test)]
mod tests;
