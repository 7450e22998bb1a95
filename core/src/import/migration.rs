//! Reads the `otpauth-migration://` URI of Google Authenticator's export: a Protocol Buffers
//! message in base64, with a list of accounts.
//!
//! The few fields are read here and not by a library, because a library would leave copies of the
//! seeds in memory.

use data_encoding::{BASE64_NOPAD, Encoding, Specification};
use std::sync::LazyLock;
use zeroize::Zeroizing;

use super::{Account, ImportError, MIGRATION_SCHEME, account_name, parameter};
use crate::seed::Seed;

/// Maximum number of bytes of a varint (64 bits, 7 in each byte).
const LONGEST_VARINT: usize = 10;

/// Base64 without padding. Bits that are not used may have any value.
static BASE64: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification: Specification = BASE64_NOPAD.specification();
    specification.check_trailing_bits = false;
    specification.encoding().unwrap_or(BASE64_NOPAD)
});

/// The value of a field.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A value of a fixed size, which no field here has.
    Other,
}

/// Reads the accounts of the URI.
pub(super) fn accounts(uri: &str) -> Result<Vec<Account>, ImportError> {
    let query = uri.get(MIGRATION_SCHEME.len()..).and_then(|rest| rest.split_once('?'));
    let (_, query) = query.ok_or(ImportError::NotAnExport)?;
    let data = parameter(query, "data").ok().flatten().ok_or(ImportError::NotAnExport)?;
    let data = BASE64.decode(data.trim_end_matches('=').as_bytes());
    let message = Zeroizing::new(data.map_err(|_| ImportError::NotAnExport)?);
    let mut rest: &[u8] = &message;
    let mut accounts = Vec::new();
    while !rest.is_empty() {
        if let (1, Field::Bytes(parameters)) = field(&mut rest).ok_or(ImportError::NotAnExport)? {
            accounts.push(account(parameters).ok_or(ImportError::NotAnExport)?);
        }
    }
    Ok(accounts)
}

/// Reads the message `OtpParameters`.
fn account(mut message: &[u8]) -> Option<Account> {
    let (mut secret, mut name, mut algorithm, mut digits, mut kind) = (&[][..], "", 0, 0, 0);
    while !message.is_empty() {
        match field(&mut message)? {
            (1, Field::Bytes(bytes)) => secret = bytes,
            (2, Field::Bytes(bytes)) => name = std::str::from_utf8(bytes).ok()?,
            (4, Field::Number(number)) => algorithm = number,
            (5, Field::Number(number)) => digits = number,
            (6, Field::Number(number)) => kind = number,
            _ => {}
        }
    }
    Some(Account {
        name: account_name(name).to_owned(),
        seed: Seed::from_bytes(secret.to_vec()),
        time_based: kind != 1,
        algorithm: match algorithm {
            0 | 1 => "SHA1",
            2 => "SHA256",
            3 => "SHA512",
            _ => "MD5",
        }
        .to_owned(),
        digits: if digits == 2 { "8" } else { "6" }.to_owned(),
        // The format has no field for it.
        period: "30".to_owned(),
    })
}

/// Takes the next field, with its number.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Field::Number(varint(rest)?),
        1 => take(rest, 8).map(|_| Field::Other)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Field::Bytes(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| Field::Other)?,
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for position in 0..LONGEST_VARINT {
        let byte = *take(rest, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}
