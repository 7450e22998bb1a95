use data_encoding::BASE64;

use super::*;
use crate::totp::Algorithm;

const BASE32: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
const OTHER: &str = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U";

fn read(text: &str) -> Result<Seed, ImportError> {
    seed(text, &"alice".parse().unwrap(), &TotpParameters::default())
}

#[track_caller]
fn is_read(text: &str, base32: &str) {
    let read = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(read.to_base32().expose_secret(), base32, "{text}");
}

#[track_caller]
fn is_refused(text: &str, sentence: &str) {
    let error = read(text).err().unwrap_or_else(|| panic!("{text} is taken")).to_string();
    assert!(error.contains(sentence), "{text}: {error}");
    assert!(!error.contains("GEZDG") && !error.contains("MFRGG"), "{error}");
}

/// A field of a Protocol Buffers message whose value is bytes.
fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2, u8::try_from(value.len()).unwrap()];
    field.extend(value);
    field
}

/// An account as Google Authenticator writes it.
fn exported(base32: &str, name: &str, algorithm: u8, digits: u8, kind: u8) -> Vec<u8> {
    let seed = Seed::from_base32(base32).unwrap();
    let numbers = [4 << 3, algorithm, 5 << 3, digits, 6 << 3, kind];
    let parts = [
        bytes(1, seed.expose_secret()),
        bytes(2, name.as_bytes()),
        bytes(3, b"FountainAI"),
        numbers.to_vec(),
    ];
    bytes(1, &parts.concat())
}

fn migration(accounts: &[Vec<u8>]) -> String {
    // Version, size, index and number of the batch follow the accounts.
    let message =
        [accounts.concat(), vec![16, 1, 24, 1, 32, 0, 40, 0xd2, 0x85, 0xd8, 0xcc, 4]].concat();
    let data = BASE64.encode(&message).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("otpauth-migration://offline?data={data}")
}

#[test]
fn base32_is_read_as_before() {
    is_read(BASE32, BASE32);
    is_read("gezd gnbv-gy3t qojq\ngezd gnbv gy3t qojq\r\n", BASE32);
    is_refused("otp", "is not base32");
    is_refused("GEZDGNBVGY3TQOJQ", "has 80 bits");
}

#[test]
fn a_uri_is_read_in_the_forms_that_apps_export() {
    for uri in [
        format!("otpauth://totp/alice?secret={BASE32}"),
        format!(
            "otpauth://totp/FountainAI:alice?secret={BASE32}&issuer=FountainAI&algorithm=SHA1&digits=6&period=30\n"
        ),
        format!(
            "otpauth://totp/Fountain AI: alice?issuer=Fountain+AI&secret={}",
            BASE32.to_lowercase()
        ),
        format!("OTPAUTH://TOTP/another%40example.org?Secret={BASE32}====&algorithm=HmacSHA1#x"),
        "otpauth://totp/?secret=GEZD%20GNBV%20GY3T%20QOJQ%20GEZD%20GNBV%20GY3T%20QOJQ&image=https://x/y?z".to_owned(),
        format!("\u{feff}otpauth://totp/Zo%C3%AB?algorithm=SHA-1&secret={BASE32}%3D"),
    ] {
        is_read(&uri, BASE32);
    }
}

#[test]
fn our_own_uri_is_read_back() {
    let user: Username = "Zoë {a}&b".parse().unwrap();
    for (algorithm, digits, period) in
        [(Algorithm::Sha1, 6, 30), (Algorithm::Sha256, 7, 15), (Algorithm::Sha512, 8, 120)]
    {
        let totp = TotpParameters::new(algorithm, digits, period, 1).unwrap();
        let own = Seed::from_base32(BASE32).unwrap();
        let uri = crate::otpauth::uri(&user, "Fountain AI", &own, &totp);
        assert!(seed(uri.expose_secret(), &user, &totp).unwrap() == own);
    }
}

#[test]
fn a_uri_with_other_parameters_than_the_user_is_refused_and_names_the_field() {
    let uri = |rest: &str| format!("otpauth://totp/alice?secret={BASE32}{rest}");
    is_refused(
        &uri("&algorithm=SHA256"),
        "says algorithm SHA256, but the user's totp.algorithm is SHA1: set it to the same",
    );
    is_refused(&uri("&digits=8"), "says digits 8, but the user's totp.digits is 6");
    is_refused(&uri("&period=60"), "says period 60, but the user's totp.periodSeconds is 30");
    is_refused(&uri("&algorithm=MD5"), "says algorithm MD5");
    // What the URI leaves out has the defaults of the format.
    let totp = TotpParameters::new(Algorithm::Sha1, 8, 30, 1).unwrap();
    let error = seed(&uri(""), &"alice".parse().unwrap(), &totp).unwrap_err().to_string();
    assert!(error.contains("says digits 6, but the user's totp.digits is 8"), "{error}");
}

#[test]
fn what_is_no_uri_of_a_time_based_account_is_refused() {
    is_refused(&format!("otpauth://hotp/alice?secret={BASE32}&counter=1"), "counter-based");
    for uri in [
        format!("otpauth://totp?secret={BASE32}"),
        "otpauth://totp/alice".to_owned(),
        "otpauth://totp/alice?issuer=x".to_owned(),
        format!("otpauth://steam/alice?secret={BASE32}"),
        format!("otpauth://totp/alice?secret={BASE32}&secret={OTHER}"),
        format!("otpauth://totp/%ff?secret={BASE32}"),
        format!("otpauth://totp/alice?secret={BASE32}&digits={}", "9".repeat(17)),
        format!("otpauth://totp/alice?secret={BASE32}&algorithm=a%0Ab"),
        format!("otpauth://totp/alice?secret={BASE32}\nhttps://example.org/"),
    ] {
        is_refused(&uri, "is not an otpauth URI like");
    }
    is_refused("otpauth://totp/alice?secret=GEZDGNBVGY3TQOJ1", "is not base32");
    is_refused("otpauth://totp/alice?secret=GEZDGNBVGY3TQOJQ", "has 80 bits");
}

#[test]
fn an_export_of_google_authenticator_is_read() {
    is_read(&migration(&[exported(BASE32, "FountainAI:alice", 1, 1, 2)]), BASE32);
    // An account that is alone may have any name, and unset values mean the defaults.
    is_read(&migration(&[exported(BASE32, "someone@example.org", 0, 0, 0)]), BASE32);
    let several = [
        exported(OTHER, "bob", 1, 1, 2),
        exported(BASE32, "FountainAI: alice", 1, 1, 2),
        exported(OTHER, "Alice", 1, 1, 2),
    ];
    is_read(&migration(&several), BASE32);
    // A large export is several pictures, and so several URIs.
    let lines = [migration(&several[..1]), String::new(), migration(&several[1..])];
    is_read(&lines.join("\r\n"), BASE32);
    is_read(&format!("{}\notpauth://totp/alice?secret={BASE32}", migration(&several[..1])), BASE32);
}

#[test]
fn an_export_without_a_clear_account_is_refused() {
    let account = |name: &str| exported(BASE32, name, 1, 1, 2);
    is_refused(&migration(&[]), "holds 0 accounts, and 0 of them are named like the user");
    is_refused(&migration(&[account("bob"), account("carol")]), "holds 2 accounts, and 0 of them");
    is_refused(&migration(&[account("alice"), account("x:alice")]), "holds 2 accounts, and 2 of");
    is_refused(&migration(&[exported(BASE32, "alice", 1, 1, 1)]), "counter-based");
    is_refused(&migration(&[exported(BASE32, "alice", 4, 1, 2)]), "says algorithm MD5");
    is_refused(&migration(&[exported(BASE32, "alice", 3, 1, 2)]), "says algorithm SHA512");
    is_refused(&migration(&[exported(BASE32, "alice", 1, 2, 2)]), "says digits 8");
}

#[test]
fn a_damaged_export_is_refused_without_a_panic() {
    let whole = migration(&[exported(BASE32, "alice", 1, 1, 2)]);
    for uri in [
        "otpauth-migration://offline",
        "otpauth-migration://?data=",
        "otpauth-migration://x?data=*",
    ] {
        assert!(read(uri).is_err(), "{uri}");
    }
    for length in MIGRATION_SCHEME.len()..whole.len() {
        let _ = read(&whole[..length]);
    }
    let message = exported(BASE32, "alice", 1, 1, 2);
    for position in 0..message.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = message.clone();
            damaged[position] = value;
            let _ = read(&migration(&[damaged]));
        }
    }
    let endless = BASE64.encode(&[0xff; 64]).replace('/', "%2F");
    is_refused(&format!("otpauth-migration://offline?data={endless}"), "is not a complete export");
}
