//! Tests the SMTP conversation against answers that real servers, relays and firewalls have been
//! seen to give.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use twofactor_core::code::Code;
use twofactor_core::provider::{Providers, SmtpSecurity, SmtpSettings};
use twofactor_core::realm::RealmRecord;
use twofactor_core::secret::SecretText;
use twofactor_core::time::UnixMillis;
use twofactor_core::totp::TotpParameters;
use twofactor_core::user::{DeliveryMethod, UserDefinition};
use twofactor_sidecar::testing::{Delivery, Message};
use twofactor_tests::mail::MailTls;
use twofactor_tests::scripted_mail::{Answer, Asked, Said, ScriptedMail};
use twofactor_tests::wait::eventually;

const BOUND: Duration = Duration::from_secs(10);
const SENT: &str = "sent";

/// A user with an address.
pub(super) fn user(email: &str) -> UserDefinition {
    UserDefinition {
        username: "alice".parse().unwrap(),
        enabled: true,
        delivery_method: DeliveryMethod::Email,
        email: Some(email.to_owned().try_into().unwrap()),
        phone_number: None,
        totp: TotpParameters::default(),
        issuer: None,
        locale: None,
    }
}

/// A realm that sends its mail through `mail`, with a login where the connection is encrypted.
pub(super) fn realm(mail: &ScriptedMail, security: SmtpSecurity) -> RealmRecord {
    let has_login = security != SmtpSecurity::Plain;
    let smtp = SmtpSettings {
        server: "127.0.0.1".to_owned(),
        port: mail.port(),
        security,
        username: has_login.then(|| "otp".to_owned()),
        password: has_login.then(|| SecretText::new("pass word".to_owned())),
        from: "FountainAI <otp@example.org>".parse().unwrap(),
        ehlo_name: None,
        ca_certificates: Some(mail.authority().to_owned()),
    };
    RealmRecord {
        providers: Providers { smtp: Some(smtp), ..Providers::default() },
        ..RealmRecord::default()
    }
}

/// Sends `code` to a user, and returns the outcome in metrics and the cause in the log.
pub(super) async fn deliver(
    delivery: &Delivery,
    realm: &RealmRecord,
    user: &UserDefinition,
    code: &str,
) -> (&'static str, String) {
    deliver_at(UnixMillis::new(1_795_348_500_000), delivery, realm, user, code).await
}

/// [`deliver`] with the time of the message.
pub(super) async fn deliver_at(
    now: UnixMillis,
    delivery: &Delivery,
    realm: &RealmRecord,
    user: &UserDefinition,
    code: &str,
) -> (&'static str, String) {
    let (code, service) = (Code::parse(code).unwrap(), "kms".parse().unwrap());
    let message = Message {
        code: &code,
        expires_at: UnixMillis::new(1_795_348_800_000),
        issuer: "FountainAI",
        service: &service,
        context: None,
        now,
    };
    match delivery.deliver(user, realm, &message).await {
        Ok(()) => (SENT, String::new()),
        Err(error) => (error.outcome(), error.to_string()),
    }
}

fn security(tls: MailTls) -> SmtpSecurity {
    match tls {
        MailTls::Plain => SmtpSecurity::Plain,
        MailTls::StartTls => SmtpSecurity::Starttls,
        MailTls::Implicit => SmtpSecurity::Implicit,
    }
}

/// A server that gives one answer of its own.
async fn server_with(tls: MailTls, verb: &'static str, answer: impl Into<Answer>) -> ScriptedMail {
    let answer = answer.into();
    ScriptedMail::start(
        tls,
        move |asked| {
            if asked.verb == verb { answer.clone() } else { Answer::Usual }
        },
    )
    .await
}

/// Sends one mail through a server that gives one answer of its own.
async fn outcome_with(
    tls: MailTls,
    verb: &'static str,
    answer: impl Into<Answer>,
) -> (&'static str, String, ScriptedMail) {
    let mail = server_with(tls, verb, answer).await;
    let realm = realm(&mail, security(tls));
    let delivery = Delivery::new(false);
    let (outcome, cause) = deliver(&delivery, &realm, &user("alice@example.org"), "123456").await;
    (outcome, cause, mail)
}

#[tokio::test]
async fn a_mail_is_delivered_over_each_kind_of_connection() {
    for tls in [MailTls::Plain, MailTls::StartTls, MailTls::Implicit] {
        let mail = ScriptedMail::start(tls, |_: &Asked<'_>| Answer::Usual).await;
        let realm = realm(&mail, security(tls));
        let delivery = Delivery::new(false);
        for code in ["123456", "234567"] {
            let sent = deliver(&delivery, &realm, &user("alice@example.org"), code).await;
            assert_eq!(sent.0, SENT, "{tls:?}: {} {mail:?}", sent.1);
        }
        assert_eq!((mail.conversations().len(), mail.mails().len()), (1, 2));
        assert_eq!(mail.commands("MAIL"), ["MAIL FROM:<otp@example.org>"; 2]);
        assert_eq!(mail.commands("RCPT"), ["RCPT TO:<alice@example.org>"; 2]);
        let hellos = if tls == MailTls::StartTls { 2 } else { 1 };
        assert_eq!(mail.commands("EHLO"), vec!["EHLO example.org"; hellos]);
        let logins = usize::from(tls != MailTls::Plain);
        assert_eq!(mail.commands("AUTH"), vec!["AUTH PLAIN AG90cABwYXNzIHdvcmQ="; logins]);
    }
}

#[tokio::test]
async fn what_is_sent_before_tls_ends_the_connection_as_untrusted() {
    let injections = [
        "220 go\r\n250 mail.example.org\r\n250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n",
        "220 go\r\n250",
        "220 go\r\n\r\n",
        "220-go\r\n220 go\r\n250 ok\r\n",
    ];
    for injected in injections {
        let (outcome, cause, mail) = outcome_with(MailTls::StartTls, "STARTTLS", injected).await;
        assert_eq!(outcome, "untrusted", "{injected:?}: {cause}");
        assert!(mail.mails().is_empty() && mail.commands("MAIL").is_empty(), "{mail:?}");
        assert_eq!(mail.commands("STARTTLS").len(), 1, "it is not tried again: {mail:?}");
    }
    for (answer, expected) in [
        ("454 4.7.0 TLS not available\r\n", "deferred"),
        ("501 5.5.4 no\r\n", "untrusted"),
        ("250 ok\r\n", "broken-off"),
    ] {
        let (outcome, cause, mail) = outcome_with(MailTls::StartTls, "STARTTLS", answer).await;
        assert_eq!(outcome, expected, "{answer:?}: {cause}");
        assert!(mail.mails().is_empty(), "{mail:?}");
    }
}

#[tokio::test]
async fn each_command_has_its_own_codes() {
    for (verb, answer, expected) in [
        ("CONNECT", "554 no\r\n", "refused"),
        ("CONNECT", "421 later\r\n", "deferred"),
        ("CONNECT", "250 ok\r\n", "broken-off"),
        ("CONNECT", "SSH-2.0-OpenSSH_9.6\r\n", "broken-off"),
        ("EHLO", "550 no\r\n", "refused"),
        ("EHLO", "421 4.7.0 Try again later\r\n", "deferred"),
        ("EHLO", "220 ok\r\n", "broken-off"),
        ("MAIL", "354 go\r\n", "broken-off"),
        ("MAIL", "552 5.2.2 full\r\n", "refused"),
        ("MAIL", "571 no\r\n", "refused"),
        ("RCPT", "551 5.1.6 moved\r\n", "refused"),
        ("RCPT", "334 go\r\n", "broken-off"),
        ("DATA", "250 ok\r\n", "broken-off"),
        ("DATA", "334 go\r\n", "broken-off"),
        ("DATA", "503 5.5.1 no valid recipients\r\n", "refused"),
        ("DATA", "354-go\r\n250 queued\r\n", "broken-off"),
        ("TEXT", "354 go\r\n", "broken-off"),
        ("TEXT", "334 go\r\n", "broken-off"),
        ("TEXT", "550-5.7.1 rejected\r\n550 5.7.1 as spam\r\n", "refused"),
        ("TEXT", "250-queued\r\n550 rejected\r\n", "broken-off"),
        ("TEXT", "452 4.3.1 later\r\n", "deferred"),
        ("TEXT", "queued\r\n", "broken-off"),
        ("RCPT", "251 2.1.5 forwarded\r\n", SENT),
        ("TEXT", "251 queued\r\n", SENT),
    ] {
        let (outcome, cause, _) = outcome_with(MailTls::Plain, verb, answer).await;
        assert_eq!(outcome, expected, "{answer:?} to {verb}: {cause}");
    }
}

#[tokio::test]
async fn a_login_is_accepted_by_235_only_and_tried_once() {
    for (answer, expected) in [
        (Answer::from("235 ok\r\n"), SENT),
        ("235\r\n".into(), SENT),
        ("250 ok\r\n".into(), "broken-off"),
        ("220 ok\r\n".into(), "broken-off"),
        ("535 5.7.8 no\r\n".into(), "misconfigured"),
        (Answer::Say(b"535 Error: \xc7\xeb\xca\xb9\xd3\xc3\r\n".to_vec()), "misconfigured"),
        (Answer::Say(b"535 \xe9chec\r\n".to_vec()), "misconfigured"),
        ("535-5.7.8 no\r\n535 5.7.8 see the manual\r\n".into(), "misconfigured"),
        ("534 5.7.9 too weak\r\n".into(), "misconfigured"),
        ("454 4.7.0 later\r\n".into(), "deferred"),
        (Answer::SayAndClose(Vec::new()), "broken-off"),
        ("no\r\n".into(), "broken-off"),
    ] {
        let shown = format!("{answer:?}");
        let (outcome, cause, mail) = outcome_with(MailTls::Implicit, "AUTH", answer).await;
        assert_eq!(outcome, expected, "{shown}: {cause}");
        assert_eq!(mail.commands("AUTH").len(), 1, "{shown}: {mail:?}");
        assert_eq!(mail.mails().len(), usize::from(expected == SENT), "{shown}");
    }
    let (_, cause, _) = outcome_with(MailTls::Implicit, "AUTH", "535 5.7.8 no alice\r\n").await;
    assert!(cause.ends_with("SMTP_USERNAME and SMTP_PASSWORD: SMTP 535 5.7.8"), "{cause}");
}

#[tokio::test]
async fn each_form_of_a_login_is_answered() {
    let offers = |auth: &'static str| format!("250-m\r\n250-{auth}\r\n250 SIZE\r\n");
    for (auth, lines) in [
        ("AUTH PLAIN", 1),
        ("AUTH LOGIN", 3),
        ("auth login plain", 1),
        ("AUTH=LOGIN", 3),
        ("AUTH XOAUTH2 CRAM-MD5 LOGIN", 3),
    ] {
        let offered = offers(auth);
        let (outcome, cause, mail) =
            outcome_with(MailTls::Implicit, "EHLO", offered.as_str()).await;
        assert_eq!(outcome, SENT, "{auth}: {cause}");
        let client = |said: &&Said| matches!(said, Said::Client(_));
        let conversations = mail.conversations();
        let said: Vec<_> = conversations[0].iter().filter(client).skip(1).take(lines + 1).collect();
        assert!(format!("{:?}", said[lines]).contains("MAIL FROM"), "{mail:?}");
        if lines == 3 {
            assert_eq!(
                said[1..3],
                [&Said::Client("b3Rw".into()), &Said::Client("cGFzcyB3b3Jk".into())]
            );
        }
    }
    for auth in ["AUTH XOAUTH2 NTLM", "SMTPUTF8"] {
        let offered = offers(auth);
        let (outcome, cause, _) = outcome_with(MailTls::Implicit, "EHLO", offered.as_str()).await;
        assert_eq!(outcome, "misconfigured", "{auth}: {cause}");
    }
    // The prompts of LOGIN count by their code, whatever they say.
    let mail = ScriptedMail::start(MailTls::Implicit, |asked| match asked.verb {
        "EHLO" => "250-m\r\n250 AUTH LOGIN\r\n".into(),
        "AUTH" => "334 Benutzername:\r\n".into(),
        "LOGIN" if asked.line == "b3Rw" => "334\r\n".into(),
        _ => Answer::Usual,
    })
    .await;
    let realm = realm(&mail, SmtpSecurity::Implicit);
    let sent = deliver(&Delivery::new(false), &realm, &user("alice@example.org"), "123456").await;
    assert_eq!(sent.0, SENT, "{} {mail:?}", sent.1);
    // A server that takes no response with the command asks for it.
    let (outcome, cause, mail) = outcome_with(MailTls::Implicit, "AUTH", "334 \r\n").await;
    assert_eq!(outcome, "broken-off", "{cause}: the script asks once more than there is to say");
    assert!(mail.commands("AG90cABwYXNzIHdvcmQ=").len() == 1, "{mail:?}");
}

#[tokio::test]
async fn replies_count_by_their_code_whatever_their_text_is() {
    for (verb, answer) in [
        ("TEXT", Answer::from("250\r\n")),
        ("TEXT", "250 \r\n".into()),
        ("TEXT", "250 ok\n".into()),
        ("DATA", "354\r\n".into()),
        ("RCPT", "250-a\r\n250\r\n".into()),
        ("MAIL", Answer::Say(b"250 f\xfcr immer\r\n".to_vec())),
        ("CONNECT", Answer::Say(b"220-\xbb\xb6\xd3\xad\r\n220 ESMTP\r\n".to_vec())),
        ("EHLO", "250\r\n".into()),
        ("EHLO", "250-m\r\n250-8bitmime\r\n250\r\n".into()),
        ("EHLO", "250 m\r\n".into()),
    ] {
        let shown = format!("{verb} {answer:?}");
        let (outcome, cause, mail) = outcome_with(MailTls::Plain, verb, answer).await;
        assert_eq!(outcome, SENT, "{shown}: {cause}");
        assert_eq!(mail.mails().len(), 1);
    }
    let lower = "250-m\r\n250-auth plain\r\n250 starttls\r\n";
    let mail = ScriptedMail::start(MailTls::StartTls, move |asked| {
        if asked.verb == "EHLO" { lower.into() } else { Answer::Usual }
    })
    .await;
    let realm = realm(&mail, SmtpSecurity::Starttls);
    let sent = deliver(&Delivery::new(false), &realm, &user("alice@example.org"), "123456").await;
    assert_eq!(sent.0, SENT, "{} {mail:?}", sent.1);
    for refusal in ["500 5.5.1 what\r\n", "502 5.5.2 no\r\n"] {
        let (outcome, cause, mail) = outcome_with(MailTls::Plain, "EHLO", refusal).await;
        assert_eq!((outcome, mail.commands("HELO").len()), (SENT, 1), "{cause}");
        let (outcome, ..) = outcome_with(MailTls::StartTls, "EHLO", refusal).await;
        assert_eq!(outcome, "untrusted");
    }
}

#[tokio::test]
async fn an_answer_that_was_not_asked_for_is_never_that_of_the_next_mail() {
    let verbs = ["TEXT", "RCPT", "MAIL", "DATA", "EHLO", "CONNECT"];
    for (verb, stray) in verbs.into_iter().flat_map(|verb| {
        ["250 stray\r\n", "25", "\r\n", "421 4.4.2 idle too long\r\n"].map(|stray| (verb, stray))
    }) {
        let said = AtomicUsize::new(0);
        // The second mail is refused. The stray answer comes with the first.
        let mail = ScriptedMail::start(MailTls::Plain, move |asked| {
            if asked.verb == verb && said.fetch_add(1, Ordering::SeqCst) == 0 {
                let usual = match verb {
                    "CONNECT" => "220 m",
                    "DATA" => "354 go",
                    _ => "250 ok",
                };
                return Answer::Say(format!("{usual}\r\n{stray}").into_bytes());
            }
            if asked.line.contains("234567") { "550 no\r\n".into() } else { Answer::Usual }
        })
        .await;
        let realm = realm(&mail, SmtpSecurity::Plain);
        let (delivery, alice) = (Delivery::new(false), user("alice@example.org"));
        let first = deliver(&delivery, &realm, &alice, "123456").await;
        let expected = if verb == "TEXT" { SENT } else { "broken-off" };
        assert_eq!(first.0, expected, "{verb} {stray:?}: {} {mail:?}", first.1);
        let second = deliver(&delivery, &realm, &alice, "234567").await;
        assert_eq!(second.0, "refused", "{verb} {stray:?}: {} {mail:?}", second.1);
        assert_eq!(mail.conversations().len(), 2, "{verb} {stray:?}: {mail:?}");
    }
}

#[tokio::test]
async fn the_sidecar_says_quit_to_a_server_that_refuses() {
    for (tls, verb, answer) in [
        (MailTls::Plain, "RCPT", "550 5.1.1 unknown\r\n"),
        (MailTls::Plain, "MAIL", "451 later\r\n"),
        (MailTls::Plain, "TEXT", "550 spam\r\n"),
        (MailTls::Plain, "DATA", "250 ok\r\n"),
        (MailTls::Plain, "EHLO", "550 no\r\n"),
        (MailTls::Implicit, "AUTH", "535 no\r\n"),
        (MailTls::StartTls, "EHLO", "250 m\r\n"),
    ] {
        let (outcome, _, mail) = outcome_with(tls, verb, answer).await;
        assert_ne!(outcome, SENT);
        eventually(BOUND, format_args!("QUIT after {answer:?} to {verb}"), async || {
            mail.commands("QUIT").len() == 1
        })
        .await;
    }
}

#[tokio::test]
async fn a_domain_in_another_script_is_sent_in_ascii() {
    let mail = ScriptedMail::start(MailTls::Plain, |_: &Asked<'_>| Answer::Usual).await;
    let mut realm = realm(&mail, SmtpSecurity::Plain);
    let smtp = realm.providers.smtp.as_mut().unwrap();
    smtp.from = "Büro <otp@bücher.example>".parse().unwrap();
    let delivery = Delivery::new(false);
    for (address, expected) in [
        ("user@bücher.example", "RCPT TO:<user@xn--bcher-kva.example>"),
        ("user@EXAMPLE.org", "RCPT TO:<user@example.org>"),
        ("o'hara+otp@почта.example", "RCPT TO:<o'hara+otp@xn--80a1acny.example>"),
    ] {
        let sent = deliver(&delivery, &realm, &user(address), "123456").await;
        assert_eq!(sent.0, SENT, "{address}: {}", sent.1);
        assert_eq!(mail.commands("RCPT").last().unwrap(), expected);
    }
    assert_eq!(mail.commands("EHLO"), ["EHLO xn--bcher-kva.example"]);
    assert_eq!(mail.commands("MAIL")[0], "MAIL FROM:<otp@xn--bcher-kva.example>");
    assert!(mail.mails().iter().all(|mail| mail.is_ascii()), "{mail:?}");
    // What stands before the @ has no other form.
    let sent = deliver(&delivery, &realm, &user("jürgen@example.org"), "123456").await;
    assert_eq!(sent.0, "refused", "{}", sent.1);
    assert!(sent.1.contains("SMTPUTF8"), "{}", sent.1);
    let utf8 = "250-m\r\n250-8bitmime\r\n250 smtputf8\r\n";
    let mail = server_with(MailTls::Plain, "EHLO", utf8).await;
    let realm = self::realm(&mail, SmtpSecurity::Plain);
    let sent = deliver(&delivery, &realm, &user("jürgen@bücher.example"), "123456").await;
    assert_eq!(sent.0, SENT, "{}", sent.1);
    assert_eq!(mail.commands("RCPT"), ["RCPT TO:<jürgen@xn--bcher-kva.example>"]);
    assert_eq!(mail.commands("MAIL"), ["MAIL FROM:<otp@example.org> SMTPUTF8 BODY=8BITMIME"]);
}
