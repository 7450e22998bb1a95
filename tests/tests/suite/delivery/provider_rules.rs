//! Tests that a mail passes servers with the rules of well-known providers, and that the page about
//! them says what the log says.

use twofactor_core::provider::SmtpSecurity;
use twofactor_sidecar::testing::Delivery;
use twofactor_tests::mail::MailTls;
use twofactor_tests::scripted_mail::{Answer, Asked, ScriptedMail};

use super::smtp::{deliver, realm, user};

const PAGE: &str = include_str!("../../../../docs/guides/providers.md");

/// A rule of a provider: the answer to a command that breaks it.
type Rule = fn(&Asked<'_>) -> Option<&'static str>;

/// What a provider's server offers after TLS, and its rules.
struct Provider {
    name: &'static str,
    tls: MailTls,
    offers: &'static str,
    rules: &'static [Rule],
}

fn has_header(mail: &str, name: &str) -> bool {
    let head = mail.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    head.lines().filter(|line| line.starts_with(&format!("{name}: "))).count() == 1
}

fn needs_message_id(asked: &Asked<'_>) -> Option<&'static str> {
    let id = asked.line.lines().find_map(|line| line.strip_prefix("Message-ID: <"));
    let is_valid = id.is_some_and(|id| id.ends_with("@example.org>"));
    (asked.verb == "TEXT" && !is_valid).then_some(
        "550-5.7.1 Messages missing a valid Message-ID header\r\n550 5.7.1 are not accepted\r\n",
    )
}

fn needs_usual_headers(asked: &Asked<'_>) -> Option<&'static str> {
    let complete =
        ["from", "to", "date", "subject", "mime-version"].map(|name| has_header(asked.line, name));
    (asked.verb == "TEXT" && complete.contains(&false)).then_some("550 5.6.0 headers\r\n")
}

fn needs_name_in_ehlo(asked: &Asked<'_>) -> Option<&'static str> {
    let name = asked.line.strip_prefix("EHLO ").unwrap_or_default();
    (asked.verb == "EHLO" && (name.contains('[') || !name.contains('.')))
        .then_some("421 4.7.0 Try again later, closing connection. (EHLO)\r\n")
}

fn needs_tls(asked: &Asked<'_>) -> Option<&'static str> {
    (asked.verb == "MAIL" && !asked.is_encrypted)
        .then_some("530 5.7.0 Must issue a STARTTLS command first\r\n")
}

fn needs_the_mailbox_as_sender(asked: &Asked<'_>) -> Option<&'static str> {
    (asked.verb == "TEXT" && !asked.line.contains("<otp@example.org>\r\n"))
        .then_some("550 5.7.60 SMTP; Client does not have permissions to send as this sender\r\n")
}

fn needs_verified_sender(asked: &Asked<'_>) -> Option<&'static str> {
    (asked.verb == "TEXT" && !asked.line.contains("From: FountainAI <otp@example.org>\r\n"))
        .then_some("554 Message rejected: Email address is not verified\r\n")
}

fn forbids_bare_line_feeds(asked: &Asked<'_>) -> Option<&'static str> {
    let is_bare = asked.line.replace("\r\n", "").contains(['\r', '\n']);
    let is_long = asked.line.lines().any(|line| line.len() > 998);
    (asked.verb == "TEXT" && (is_bare || is_long)).then_some("550 5.5.2 bare <LF> received\r\n")
}

const PROVIDERS: [Provider; 8] = [
    Provider {
        name: "Gmail",
        tls: MailTls::Implicit,
        offers: "250-SIZE 35882577\r\n250-8BITMIME\r\n250-AUTH LOGIN PLAIN XOAUTH2 PLAIN-CLIENTTOKEN OAUTHBEARER\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250 SMTPUTF8\r\n",
        rules: &[needs_message_id, needs_usual_headers],
    },
    Provider {
        name: "Google Workspace relay",
        tls: MailTls::StartTls,
        offers: "250-SIZE 157286400\r\n250-8BITMIME\r\n250-AUTH LOGIN PLAIN XOAUTH2\r\n250 SMTPUTF8\r\n",
        rules: &[needs_name_in_ehlo, needs_message_id, needs_tls],
    },
    Provider {
        name: "Microsoft 365",
        tls: MailTls::StartTls,
        offers: "250-SIZE 157286400\r\n250-PIPELINING\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n250-AUTH LOGIN XOAUTH2\r\n250-8BITMIME\r\n250-BINARYMIME\r\n250-CHUNKING\r\n250 SMTPUTF8\r\n",
        rules: &[needs_tls, needs_the_mailbox_as_sender],
    },
    Provider {
        name: "Amazon SES",
        tls: MailTls::StartTls,
        offers: "250-8BITMIME\r\n250-AUTH PLAIN LOGIN\r\n250 Ok\r\n",
        rules: &[needs_tls, needs_verified_sender],
    },
    Provider {
        name: "Mailgun",
        tls: MailTls::StartTls,
        offers: "250-AUTH PLAIN LOGIN\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
        rules: &[needs_tls, needs_usual_headers, needs_verified_sender],
    },
    Provider {
        name: "Postmark",
        tls: MailTls::StartTls,
        offers: "250-PIPELINING\r\n250-SIZE 11534336\r\n250-AUTH CRAM-MD5 PLAIN\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
        rules: &[needs_tls, needs_usual_headers, needs_verified_sender],
    },
    Provider {
        name: "SendGrid",
        tls: MailTls::Implicit,
        offers: "250-8BITMIME\r\n250-PIPELINING\r\n250-SIZE 31457280\r\n250-AUTH PLAIN LOGIN\r\n250 AUTH=PLAIN LOGIN\r\n",
        rules: &[needs_usual_headers, needs_verified_sender],
    },
    Provider {
        name: "Postfix of your own",
        tls: MailTls::StartTls,
        offers: "250-PIPELINING\r\n250-SIZE 10240000\r\n250-AUTH PLAIN LOGIN\r\n250-AUTH=PLAIN LOGIN\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250 CHUNKING\r\n",
        rules: &[needs_tls, needs_name_in_ehlo, forbids_bare_line_feeds, needs_usual_headers],
    },
];

async fn server(provider: &'static Provider) -> ScriptedMail {
    ScriptedMail::start(provider.tls, |asked| {
        if let Some(refusal) = provider.rules.iter().find_map(|rule| rule(asked)) {
            return refusal.into();
        }
        if asked.verb == "EHLO" && asked.is_encrypted {
            return Answer::Say(format!("250-mx.example.net\r\n{}", provider.offers).into_bytes());
        }
        Answer::Usual
    })
    .await
}

fn security(tls: MailTls) -> SmtpSecurity {
    if tls == MailTls::Implicit { SmtpSecurity::Implicit } else { SmtpSecurity::Starttls }
}

#[tokio::test]
async fn a_mail_passes_the_rules_of_each_provider() {
    for provider in &PROVIDERS {
        assert!(PAGE.contains(&format!("\n| {} | ", provider.name)), "{}", provider.name);
        let mail = server(provider).await;
        let mut realm = realm(&mail, security(provider.tls));
        let (delivery, alice) = (Delivery::new(false), user("alice@example.org"));
        for code in ["123456", "234567"] {
            let sent = deliver(&delivery, &realm, &alice, code).await;
            assert_eq!(sent.0, "sent", "{}: {} {mail:?}", provider.name, sent.1);
        }
        assert_eq!(mail.mails().len(), 2, "{}", provider.name);
        // Otherwise the rules would not have been tried.
        let smtp = realm.providers.smtp.as_mut().unwrap();
        smtp.ehlo_name = Some("[127.0.0.1]".to_owned());
        smtp.from = "otp@other.example".parse().unwrap();
        let refused = deliver(&delivery, &realm, &alice, "345678").await;
        assert_ne!(refused.0, "sent", "{}: {mail:?}", provider.name);
    }
}

#[tokio::test]
async fn the_page_about_providers_says_what_the_log_says() {
    for (verb, answer) in [
        ("TEXT", "550-5.7.1 Messages missing a valid Message-ID\r\n550 5.7.1 header\r\n"),
        ("EHLO", "421 4.7.0 Try again later, closing connection. (EHLO)\r\n"),
        ("MAIL", "550 5.7.1 Invalid credentials for relay\r\n"),
        ("TEXT", "550 5.7.60 SMTP; Client does not have permissions\r\n"),
        ("TEXT", "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded\r\n"),
        ("TEXT", "554 Message rejected: Email address is not verified\r\n"),
        ("TEXT", "454 Throttling failure: Maximum sending rate exceeded\r\n"),
        ("RCPT", "504 5.5.2 <[127.0.0.1]>: Helo command rejected\r\n"),
        ("RCPT", "450 4.1.8 <otp@example.org>: Sender address rejected\r\n"),
        ("TEXT", "550 5.5.2 bare <LF> received\r\n"),
        ("RCPT", "503 5.5.0 improper command pipelining\r\n"),
        ("AUTH", "534 5.7.9 Application-specific password required\r\n"),
        ("AUTH", "535 5.7.8 Username and Password not accepted\r\n"),
        ("AUTH", "535 5.7.139 Authentication unsuccessful\r\n"),
    ] {
        let mail = ScriptedMail::start(MailTls::Implicit, move |asked| {
            if asked.verb == verb { answer.into() } else { Answer::Usual }
        })
        .await;
        let realm = realm(&mail, SmtpSecurity::Implicit);
        let alice = user("alice@example.org");
        let (outcome, cause) = deliver(&Delivery::new(false), &realm, &alice, "123456").await;
        assert_ne!(outcome, "sent");
        let codes = &cause[cause.rfind("SMTP ").unwrap()..];
        assert!(PAGE.contains(&format!("`{codes}`")), "{codes} is not on the page");
    }
}
