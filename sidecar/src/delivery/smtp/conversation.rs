//! Speaks SMTP over one connection (RFC 5321): greeting, STARTTLS (RFC 3207), login (RFC 4954) and
//! mails. Each command is answered by the codes that the standard has for it, and by no others.

use std::time::Duration;

use data_encoding::BASE64;
use twofactor_core::provider::SmtpSecurity;
use twofactor_core::secret::SecretText;

use super::reply::Reply;
use super::tls::Tls;
use super::wire::{Fault, Wire};
use crate::delivery::error::{DeliveryError, cause, is_about_trust};

/// Timeout for QUIT.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Code of the reply that asks for the text of a mail.
const SEND_TEXT: u16 = 354;
/// Code of the reply that asks for more of a login.
const MORE_OF_LOGIN: u16 = 334;
/// Code of the reply to a login that was accepted.
const LOGGED_IN: u16 = 235;

/// How conversations with a server begin.
pub(super) struct Terms {
    pub(super) security: SmtpSecurity,
    /// Present unless `security` is plain.
    pub(super) tls: Option<Tls>,
    pub(super) credentials: Option<(String, SecretText)>,
    /// The name in EHLO.
    pub(super) ehlo_name: String,
}

/// A mail, with the addresses that it is sent from and to.
pub(in crate::delivery) struct Mail<'a> {
    pub(in crate::delivery) from: &'a str,
    pub(in crate::delivery) to: &'a str,
    /// Header and text, with CRLF at the end of each line.
    pub(in crate::delivery) text: &'a [u8],
}

/// What the server offers in its answer to EHLO.
#[derive(Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each keyword is there or not")]
struct Offers {
    starttls: bool,
    plain: bool,
    login: bool,
    eight_bit: bool,
    utf8: bool,
}

/// A connection that is ready for a mail.
pub(super) struct Conversation {
    wire: Wire,
    offers: Offers,
}

/// Why a mail was not sent over a connection.
pub(super) enum Failed {
    /// The server refused the command with this name.
    Refused(&'static str, Reply),
    /// There was no valid reply to the command with this name.
    Broken(&'static str, Fault),
    /// The server cannot take such a mail.
    Unable(&'static str),
}

impl Conversation {
    /// Waits for the greeting, begins TLS and logs in, as `terms` demand. If this fails, nothing
    /// has been sent.
    pub(super) async fn open(wire: Wire, terms: &Terms) -> Result<Self, DeliveryError> {
        let mut conversation = Self { wire, offers: Offers::default() };
        match conversation.prepare(terms).await {
            Ok(()) => Ok(conversation),
            Err(error) => {
                conversation.leave();
                Err(error)
            }
        }
    }

    async fn prepare(&mut self, terms: &Terms) -> Result<(), DeliveryError> {
        let tls = terms.tls.as_ref();
        if let (SmtpSecurity::Implicit, Some(tls)) = (terms.security, tls) {
            self.encrypt(tls).await?;
        }
        let greeting = self.wire.reply().await.map_err(not_connected)?;
        if greeting.code != 220 {
            return Err(refusal("the connection", &greeting));
        }
        self.hello(&terms.ehlo_name).await?;
        if let (SmtpSecurity::Starttls, Some(tls)) = (terms.security, tls) {
            self.start_tls(tls).await?;
            self.hello(&terms.ehlo_name).await?;
        }
        match &terms.credentials {
            Some((username, password)) => self.log_in(username, password).await,
            None => Ok(()),
        }
    }

    async fn hello(&mut self, name: &str) -> Result<(), DeliveryError> {
        let mut reply = self.command(&format!("EHLO {name}")).await.map_err(not_connected)?;
        self.offers = Offers::of(&reply);
        // A server of the time before EHLO has no extensions (RFC 5321 §3.2).
        if matches!(reply.code, 500..=502) {
            self.offers = Offers::default();
            reply = self.command(&format!("HELO {name}")).await.map_err(not_connected)?;
        }
        if reply.code == 250 { Ok(()) } else { Err(refusal("EHLO", &reply)) }
    }

    async fn start_tls(&mut self, tls: &Tls) -> Result<(), DeliveryError> {
        let untrusted = |why: &str| Err(DeliveryError::Untrusted(why.to_owned()));
        if !self.offers.starttls {
            return untrusted("the mail server offers no STARTTLS");
        }
        let reply = self.command("STARTTLS").await.map_err(not_connected)?;
        match reply.code {
            220 => {}
            500..=599 => return untrusted("the mail server refuses STARTTLS"),
            _ => return Err(refusal("STARTTLS", &reply)),
        }
        // What comes in clear may be from any machine on the way, and would later count as an
        // answer that was encrypted.
        if let Err(Fault::Unasked) = self.wire.expect_silence() {
            return untrusted("there was an answer before TLS began");
        }
        self.encrypt(tls).await
    }

    async fn encrypt(&mut self, tls: &Tls) -> Result<(), DeliveryError> {
        self.offers = Offers::default();
        let encrypted = self.wire.encrypt(&tls.connector, tls.name.clone()).await;
        encrypted.map_err(|error| not_connected(Fault::Lost(error)))
    }

    /// Logs in with the first mechanism that the server offers. A login is sent once, because
    /// servers lock accounts after a few wrong ones.
    async fn log_in(&mut self, username: &str, password: &SecretText) -> Result<(), DeliveryError> {
        let password = password.expose_secret();
        let lines = if self.offers.plain {
            let both = BASE64.encode(format!("\0{username}\0{password}").as_bytes());
            // A server that asks for more did not take the response on the line of the command.
            vec![format!("AUTH PLAIN {both}"), both]
        } else if self.offers.login {
            let encode = |text: &str| BASE64.encode(text.as_bytes());
            vec!["AUTH LOGIN".to_owned(), encode(username), encode(password)]
        } else {
            return Err(DeliveryError::Misconfigured(
                "the mail server offers no way to log in that is known here".into(),
            ));
        };
        let mut reply = None;
        for line in &lines {
            let said = self.command(line).await.map_err(|fault| broken("the login", fault))?;
            let asks_for_more = said.code == MORE_OF_LOGIN;
            reply = Some(said);
            if !asks_for_more {
                break;
            }
        }
        match reply {
            Some(reply) if reply.code == LOGGED_IN => Ok(()),
            Some(reply) if reply.code / 100 == 5 => Err(DeliveryError::Misconfigured(
                format!("the mail server does not accept SMTP_USERNAME and SMTP_PASSWORD: {reply}")
                    .into(),
            )),
            Some(reply) => Err(refusal("the login", &reply)),
            None => Err(broken("the login", Fault::Invalid)),
        }
    }

    /// Sends MAIL, with the extensions that the mail needs. If this fails, nothing has been sent.
    pub(super) async fn begin(&mut self, mail: &Mail<'_>) -> Result<(), Failed> {
        let mut command = format!("MAIL FROM:<{}>", mail.from);
        if !(mail.from.is_ascii() && mail.to.is_ascii()) {
            if !self.offers.utf8 {
                return Err(Failed::Unable(
                    "an address is not ASCII, and the mail server has no SMTPUTF8",
                ));
            }
            command.push_str(" SMTPUTF8");
        }
        if !mail.text.is_ascii() {
            if !self.offers.eight_bit {
                return Err(Failed::Unable(
                    "the mail is not ASCII, and the mail server has no 8BITMIME",
                ));
            }
            command.push_str(" BODY=8BITMIME");
        }
        self.expect_success("MAIL", &command).await
    }

    /// Sends the rest of a mail. Only the server's last answer says that it was taken.
    pub(super) async fn finish(&mut self, mail: &Mail<'_>) -> Result<(), Failed> {
        self.expect_success("RCPT", &format!("RCPT TO:<{}>", mail.to)).await?;
        match self.command("DATA").await {
            Ok(reply) if reply.code == SEND_TEXT => {}
            Ok(reply) => return Err(Failed::Refused("DATA", reply)),
            Err(fault) => return Err(Failed::Broken("DATA", fault)),
        }
        match self.wire.ask(&escaped(mail.text)).await {
            Ok(reply) if reply.is_success() => Ok(()),
            Ok(reply) => Err(Failed::Refused("the mail", reply)),
            Err(fault) => Err(Failed::Broken("the mail", fault)),
        }
    }

    async fn expect_success(&mut self, name: &'static str, command: &str) -> Result<(), Failed> {
        match self.command(command).await {
            Ok(reply) if reply.is_success() => Ok(()),
            Ok(reply) => Err(Failed::Refused(name, reply)),
            Err(fault) => Err(Failed::Broken(name, fault)),
        }
    }

    async fn command(&mut self, line: &str) -> Result<Reply, Fault> {
        self.wire.ask(format!("{line}\r\n").as_bytes()).await
    }

    /// Whether the next command would be answered by its own reply.
    pub(super) fn is_in_step(&mut self) -> bool {
        self.wire.expect_silence().is_ok()
    }

    /// Says QUIT in the background, because a server may count a connection that just ends as
    /// abuse.
    pub(super) fn leave(mut self) {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(QUIT_TIMEOUT, self.command("QUIT")).await;
        });
    }
}

impl Offers {
    /// Reads the lines after the first one, which has the server's name.
    fn of(reply: &Reply) -> Self {
        let mut offers = Self::default();
        for line in reply.texts().iter().skip(1) {
            // Old servers write AUTH=LOGIN.
            let line = line.to_ascii_uppercase();
            let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
            match words.next() {
                Some("STARTTLS") => offers.starttls = true,
                Some("8BITMIME") => offers.eight_bit = true,
                Some("SMTPUTF8") => offers.utf8 = true,
                Some("AUTH") => {
                    for mechanism in words {
                        offers.plain |= mechanism == "PLAIN";
                        offers.login |= mechanism == "LOGIN";
                    }
                }
                _ => {}
            }
        }
        offers
    }
}

impl Failed {
    /// Whether the server has closed the connection, with or without the code 421.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Refused(_, reply) => reply.code == 421,
            Self::Broken(_, Fault::Lost(_)) => true,
            Self::Broken(..) | Self::Unable(_) => false,
        }
    }
}

impl From<Failed> for DeliveryError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Unable(why) => Self::Refused(why.to_owned()),
            Failed::Refused(what, reply) => refusal(what, &reply),
            Failed::Broken(what, fault) => broken(what, fault),
        }
    }
}

/// Returns the error for a reply that is not the right one.
fn refusal(what: &str, reply: &Reply) -> DeliveryError {
    let said = format!("{reply} to {what}");
    match reply.code {
        400..=499 => DeliveryError::Deferred(said),
        500..=599 => DeliveryError::Refused(said),
        _ => DeliveryError::Broken(format!("{said}, which is no answer to it")),
    }
}

fn broken(what: &str, fault: Fault) -> DeliveryError {
    DeliveryError::Broken(match fault {
        Fault::Lost(error) => format!("{}, at {what}", cause(&error)),
        Fault::Invalid => format!("the answer to {what} is no reply of SMTP"),
        Fault::Unasked => format!("the mail server answered before {what}"),
    })
}

/// Returns the error for a connection that broke before a login or a mail was sent.
fn not_connected(fault: Fault) -> DeliveryError {
    match fault {
        Fault::Lost(error) if is_about_trust(&error) => DeliveryError::Untrusted(cause(&error)),
        Fault::Lost(error) => DeliveryError::Unreachable(cause(&error)),
        other => broken("the first command", other),
    }
}

/// Returns a mail with its end, to be sent in one piece: a second piece would wait for the server
/// to acknowledge the first, which takes up to forty milliseconds.
fn escaped(mail: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(mail.len() + 16);
    for line in mail.split_inclusive(|byte| *byte == b'\n') {
        // A line of one dot would end the mail (RFC 5321 §4.5.2).
        if line.starts_with(b".") {
            escaped.push(b'.');
        }
        escaped.extend_from_slice(line);
    }
    escaped.extend_from_slice(if mail.ends_with(b"\n") { b".\r\n" } else { b"\r\n.\r\n" });
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::smtp::reply;

    #[test]
    fn no_line_of_a_mail_ends_it_early() {
        for (mail, sent) in [
            ("a: b\r\n\r\ntext\r\n", "a: b\r\n\r\ntext\r\n.\r\n"),
            ("text", "text\r\n.\r\n"),
            ("x\r\n.\r\n..y\r\n", "x\r\n..\r\n...y\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
        ] {
            assert_eq!(escaped(mail.as_bytes()), sent.as_bytes());
        }
    }

    #[test]
    fn offers_are_read_in_any_case_and_in_old_forms() {
        let of = |text: &str| {
            let reply = reply::take(&mut text.replace('|', "\r\n250").into_bytes());
            Offers::of(&reply.unwrap().unwrap())
        };
        let all = Offers { starttls: true, plain: true, login: true, eight_bit: true, utf8: true };
        assert_eq!(of("250-m|-STARTTLS|-AUTH PLAIN LOGIN|-8BITMIME| SMTPUTF8\r\n"), all);
        assert_eq!(of("250-m|-starttls|-Auth Login plain|-8bitmime|-smtputf8|\r\n"), all);
        assert!(of("250-m|-AUTH=LOGIN| AUTH NTLM PLAIN\r\n").login);
        assert_eq!(of("250 STARTTLS\r\n"), Offers::default(), "the name of the server");
        assert_eq!(of("250-m|-XSTARTTLS| AUTHPLAIN\r\n"), Offers::default());
    }
}
