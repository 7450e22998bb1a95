//! Tests that the sidecar never takes a mail for delivered that the mail server did not take,
//! whatever the server says, and that it never waits longer than it promises.
//!
//! Each conversation is random from a seed, and goes through the real delivery over a real socket.
//! `PROPTEST_CASES=20000 cargo test -p twofactor-tests --test suite fuzz` tries more of them, and
//! `FUZZ_SEED` sets another seed.

use std::collections::BTreeMap;
use std::env;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proptest::test_runner::{RngAlgorithm, TestRng};
use rand_core::Rng;
use tokio::task::JoinSet;
use twofactor_core::provider::SmtpSecurity;
use twofactor_sidecar::testing::Delivery;
use twofactor_tests::mail::MailTls;
use twofactor_tests::scripted_mail::{Answer, Asked, Said, ScriptedMail};

use super::smtp::{deliver, realm, user};

/// Number of conversations, each with up to three mails.
const CONVERSATIONS: u64 = 1200;
/// Number of conversations at the same time.
const AT_ONCE: usize = 48;
/// Timeout of a delivery, and what a busy machine may add.
const PROMISED: Duration = Duration::from_secs(10 + 5);

/// Random choices from a seed.
struct Chance(TestRng);

impl Chance {
    fn new(seed: u64, number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.0.next_u32() % bound
    }

    fn one_of<T: Clone>(&mut self, items: &[T]) -> T {
        let index = self.below(u32::try_from(items.len()).unwrap());
        items[index as usize].clone()
    }

    fn bytes(&mut self, most: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.below(most) as usize];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// A reply that may have any code and any form.
    fn reply(&mut self) -> Vec<u8> {
        let code = self.one_of(&[
            220, 221, 235, 250, 250, 250, 251, 252, 334, 354, 354, 421, 432, 450, 452, 454, 500,
            502, 503, 530, 534, 535, 550, 552, 571, 199, 600, 999,
        ]);
        let other = self.one_of(&[250, 354, 550]);
        let text = self.one_of(&["ok", "2.0.0 queued", "5.7.1 no", "250 ok", "", "\u{fc}", "\t"]);
        let reply = match self.below(9) {
            0 => format!("{code}\r\n"),
            1 => format!("{code} {text}\n"),
            2 => format!("{code}-{text}\r\n{code} {text}\r\n"),
            3 => format!("{code}-{text}\r\n{other} {text}\r\n"),
            4 => format!("{code}{text}\r\n"),
            5 => format!("{code}-AUTH LOGIN\r\n{code}-starttls\r\n{code}-auth=plain\r\n{code}\r\n"),
            _ => format!("{code} {text}\r\n"),
        };
        if self.below(6) == 0 { reply.chars().map(|c| c as u8).collect() } else { reply.into() }
    }

    /// An answer that no standard has. Few are silent, because each costs ten seconds.
    fn answer(&mut self, asked: &Asked<'_>) -> Answer {
        let usual = match asked.verb {
            "CONNECT" | "STARTTLS" => "220 go\r\n",
            "AUTH" => "235 ok\r\n",
            "DATA" => "354 go\r\n",
            _ => "250 ok\r\n",
        };
        let bytes = match self.below(120) {
            0 => return Answer::Silence,
            1 => usual[..self.below(6) as usize].into(),
            2..=50 => self.reply(),
            51..=70 => [usual.as_bytes(), &self.reply()].concat(),
            71..=80 => [usual.as_bytes(), &self.bytes(8)].concat(),
            81..=90 => [self.bytes(80), b"\r\n".to_vec()].concat(),
            91..=95 => [b"250 ".as_slice(), &[b'x'; 9000]].concat(),
            96..=100 => b"250-x\r\n".repeat(400),
            101..=110 => {
                let part = usual[..self.below(6) as usize].into();
                return Answer::SayAndClose(part);
            }
            _ => return Answer::SayAndClose(self.reply()),
        };
        Answer::Say(bytes)
    }
}

/// Whether a text begins with a line of this kind: the first digits of its code, and then its end,
/// a space or a hyphen.
fn says(bytes: &[u8], code: &str) -> bool {
    bytes.starts_with(code.as_bytes())
        && bytes.len() > 3
        && bytes[..3].iter().all(u8::is_ascii_digit)
        && b" -\r\n".contains(&bytes[3])
}

/// Whether the server took the mail with `code`: it accepted sender, receiver and text, each in an
/// answer of its own, over a connection that is as secure as it has to be.
fn was_taken(mail: &ScriptedMail, tls: MailTls, code: &str) -> bool {
    mail.conversations().iter().any(|said| {
        let end = said.windows(8).position(|step| {
            let [
                Said::Client(from),
                Said::Server(sender),
                Said::Client(to),
                Said::Server(receiver),
                Said::Client(data),
                Said::Server(go),
                Said::Mail(text),
                Said::Server(end),
            ] = step
            else {
                return false;
            };
            from.starts_with("MAIL FROM:<otp@example.org>")
                && says(sender, "2")
                && to == "RCPT TO:<alice@example.org>"
                && says(receiver, "2")
                && data == "DATA"
                && says(go, "354")
                && text.contains(code)
                && says(end, "2")
        });
        let Some(end) = end else { return false };
        let before = &said[..end];
        let logged_in = before.windows(2).any(
            |step| matches!(step, [Said::Client(_), Said::Server(answer)] if says(answer, "235")),
        );
        tls == MailTls::Plain || (before.contains(&Said::Tls) && logged_in)
    })
}

/// Sends up to three mails through one server, and returns the outcomes.
async fn converse(seed: u64, number: u64) -> Vec<&'static str> {
    let mut chance = Chance::new(seed, number);
    let tls = chance.one_of(&[MailTls::Plain, MailTls::StartTls, MailTls::Implicit]);
    let security = match tls {
        MailTls::Plain => SmtpSecurity::Plain,
        MailTls::StartTls => SmtpSecurity::Starttls,
        MailTls::Implicit => SmtpSecurity::Implicit,
    };
    // Of a hundred answers, so many are wrong.
    let wrong = chance.one_of(&[0, 3, 10, 40, 100]);
    let most = 1 + chance.below(3);
    let chance = Mutex::new(chance);
    let mail = ScriptedMail::start(tls, move |asked| {
        let mut chance = chance.lock().unwrap();
        if chance.below(100) < wrong { chance.answer(asked) } else { Answer::Usual }
    })
    .await;
    let realm = realm(&mail, security);
    let (delivery, alice) = (Delivery::new(false), user("alice@example.org"));
    let mut outcomes = Vec::new();
    for index in 0..most {
        let (code, begin) = (format!("{}", 123_450 + index), Instant::now());
        let (outcome, cause) = deliver(&delivery, &realm, &alice, &code).await;
        let elapsed = begin.elapsed();
        let shown = format!("seed {seed}, conversation {number}: {outcome} {cause} {mail:?}");
        assert!(elapsed < PROMISED, "{elapsed:?}: {shown}");
        assert!(outcome != "sent" || was_taken(&mail, tls, &code), "{shown}");
        assert!(wrong > 0 || outcome == "sent", "{shown}");
        assert!(!cause.contains("alice") && !cause.contains(&code), "{shown}");
        outcomes.push(outcome);
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_server_that_says_anything_never_makes_a_mail_delivered_that_it_did_not_take() {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let count = number("PROPTEST_CASES").unwrap_or(CONVERSATIONS);
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let (mut running, mut counted) = (JoinSet::new(), BTreeMap::<&str, usize>::new());
    let mut add = |outcomes: Vec<&'static str>| {
        for outcome in outcomes {
            *counted.entry(outcome).or_default() += 1;
        }
    };
    for conversation in 0..count {
        if running.len() >= AT_ONCE {
            add(running.join_next().await.unwrap().unwrap());
        }
        running.spawn(converse(seed, conversation));
    }
    while let Some(done) = running.join_next().await {
        add(done.unwrap());
    }
    println!("outcomes of {count} conversations with seed {seed}: {counted:?}");
    // Otherwise the conversations would not have tested much.
    for outcome in ["sent", "refused", "deferred", "broken-off", "untrusted", "misconfigured"] {
        assert!(
            count < CONVERSATIONS || counted.contains_key(outcome),
            "no {outcome} in {counted:?}"
        );
    }
}
