//! Reads the settings of tokens from variables. Errors never contain a value.

use std::collections::BTreeSet;

use super::{SettingsError, wrong};
use crate::secret::SecretText;
use crate::token::{
    Audience, AudienceError, Ed25519Key, SigningKey, TokenAlgorithm, TokenLifetime, TokenSettings,
};

/// The ecosystem's shared key, for HS256.
pub const SECRET_KEY: &str = "SECRET_KEY";
/// The private key for `EdDSA`.
pub const ED25519_PRIVATE_KEY: &str = "ED25519_PRIVATE_KEY";

/// Reads tokens from the variables that `variable` knows. `TOKEN_AUDIENCES` enables them. Keys are
/// checked even without it, so that an invalid one is noticed before it is needed.
///
/// # Errors
/// Names the first variable that is missing or invalid.
pub fn tokens(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<TokenSettings>, SettingsError> {
    let algorithm = match variable("ALGORITHM") {
        None => TokenAlgorithm::default(),
        Some(text) => TokenAlgorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| wrong("ALGORITHM", "must be HS256 or EdDSA"))?,
    };
    let shared = variable(SECRET_KEY)
        .map(|text| {
            SigningKey::shared(SecretText::new(text))
                .map_err(|error| wrong(SECRET_KEY, error.to_string()))
        })
        .transpose()?;
    let own = variable(ED25519_PRIVATE_KEY)
        .map(SecretText::new)
        .map(|text| {
            Ed25519Key::try_from(text)
                .map_err(|error| wrong(ED25519_PRIVATE_KEY, error.to_string()))
        })
        .transpose()?;
    let lifetime = match variable("TOKEN_LIFETIME_SECONDS") {
        None => TokenLifetime::default(),
        Some(text) => text
            .parse::<u16>()
            .ok()
            .and_then(|seconds| TokenLifetime::try_from(seconds).ok())
            .ok_or_else(|| {
                wrong("TOKEN_LIFETIME_SECONDS", "must be a number of seconds from 1 to 300")
            })?,
    };
    let Some(audiences) = variable("TOKEN_AUDIENCES") else { return Ok(None) };
    let audiences: Result<BTreeSet<Audience>, AudienceError> =
        audiences.split(',').map(|text| text.trim().parse()).collect();
    let audiences = audiences.map_err(|error| {
        wrong("TOKEN_AUDIENCES", format!("has, between commas, one that {error}"))
    })?;
    let (name, key) = match algorithm {
        TokenAlgorithm::Hs256 => (SECRET_KEY, shared),
        TokenAlgorithm::EdDsa => (ED25519_PRIVATE_KEY, own.map(SigningKey::EdDsa)),
    };
    let missing = || wrong(name, "is missing, although TOKEN_AUDIENCES turns tokens on");
    Ok(Some(TokenSettings { key: key.ok_or_else(missing)?, audiences, lifetime }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "at least thirty-two bytes of a key";
    /// That of RFC 8410 §10.3.
    const OWN: &str = "1O5y2/kTWErVttjx92n4rTr+fCjL8dT74Jeoj0R1WEI=";

    fn read(variables: &[(&str, &str)]) -> Result<Option<TokenSettings>, SettingsError> {
        tokens(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn audiences_enable_tokens() {
        assert_eq!(read(&[(SECRET_KEY, KEY), (ED25519_PRIVATE_KEY, OWN)]).unwrap(), None);
        let variables =
            [(SECRET_KEY, KEY), ("TOKEN_AUDIENCES", "kms, shop"), ("TOKEN_LIFETIME_SECONDS", "60")];
        let tokens = read(&variables).unwrap().unwrap();
        assert_eq!(tokens.key.algorithm(), TokenAlgorithm::Hs256);
        assert_eq!(
            tokens.audiences.iter().map(Audience::as_str).collect::<Vec<_>>(),
            ["kms", "shop"]
        );
        assert_eq!(tokens.lifetime.duration().as_secs(), 60);
        let variables =
            [("ALGORITHM", "EdDSA"), (ED25519_PRIVATE_KEY, OWN), ("TOKEN_AUDIENCES", "kms")];
        assert_eq!(read(&variables).unwrap().unwrap().key.algorithm(), TokenAlgorithm::EdDsa);
    }

    #[test]
    fn invalid_values_are_named_and_never_repeated() {
        for (variables, variable) in [
            (&[("ALGORITHM", "none")][..], "ALGORITHM"),
            (&[(SECRET_KEY, "short-and-secret-value")], SECRET_KEY),
            (&[(ED25519_PRIVATE_KEY, "short-and-secret-value")], ED25519_PRIVATE_KEY),
            (&[("TOKEN_AUDIENCES", "kms")], SECRET_KEY),
            (
                &[("TOKEN_AUDIENCES", "kms"), ("ALGORITHM", "EdDSA"), (SECRET_KEY, KEY)],
                ED25519_PRIVATE_KEY,
            ),
            (&[("TOKEN_AUDIENCES", "kms,,shop"), (SECRET_KEY, KEY)], "TOKEN_AUDIENCES"),
            (&[("TOKEN_LIFETIME_SECONDS", "301")], "TOKEN_LIFETIME_SECONDS"),
        ] {
            let error = read(variables).unwrap_err();
            assert_eq!(error.variable, variable);
            assert!(!error.to_string().contains("secret-value"), "{error}");
        }
    }
}
