//! Writes to the terminal what the developer can do next.

use std::net::SocketAddr;

use twofactor_core::qr::QrPicture;
use twofactor_core::secret::SecretText;
use twofactor_core::user::DeliveryMethod;

use crate::dev::manifests::Users;

/// Shows a new seed once, so that the user can scan it.
pub fn show_seed(uri: &SecretText, username: &str) {
    say!("Scan this with an authenticator app to be {username:?}, or open {}", uri.expose_secret());
    match QrPicture::encode(uri) {
        Ok(picture) => say!("{}", picture.terminal()),
        Err(error) => say!("{error}"),
    }
}

/// Shows what to do next, with lines to paste.
pub fn show_commands(users: &Users, address: SocketAddr, codes_in_answers: bool) {
    let base = format!("http://{address}");
    say!(
        "\nServing {} users at {base} (documentation: {base}/docs). Stop with Ctrl-C.",
        users.len()
    );
    // A user whose name needs no quoting in a shell, and preferably one who gets codes sent; of
    // these the first by name, so that another file changes nothing.
    let plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
    };
    let candidates =
        users.definitions().filter(|user| user.enabled && plain(user.username.as_str()));
    let Some(user) = candidates
        .min_by_key(|user| (user.delivery_method == DeliveryMethod::App, user.username.as_str()))
    else {
        return;
    };
    let name = user.username.as_str();
    let ask = format!("curl -s -X POST '{base}/auth/generate?username={name}'");
    let verify = format!(
        "curl -s {base}/auth/verify -H 'Content-Type: application/json' \
         -d '{{\"username\":\"{name}\",\"otp_code\":\"'$CODE'\"}}'; echo"
    );
    let read = "read -rp 'Code: ' CODE";
    let (lines, first) = match (user.delivery_method, codes_in_answers) {
        (DeliveryMethod::App, _) => (read.to_owned(), "takes the code that the app shows"),
        (_, true) => {
            let code = "sed -n 's/.*\"otp_code\":\"\\([0-9]*\\)\".*/\\1/p'";
            (format!("CODE=$({ask} | {code})"), "asks for a code")
        }
        (_, false) => {
            (format!("{ask}; echo; {read}"), "asks for a code and takes the one that arrives")
        }
    };
    say!(
        "Paste these lines into another terminal:\n\n{lines}\n{verify}\n{verify}\n\n\
         The first {first}, the second answers {{\"success\":true}}, the third that it was used before.\n"
    );
    if users.has_imports() {
        say!(
            "Codes of imported seeds are accepted a minute after the start: earlier ones may have been used before.\n"
        );
    }
}
