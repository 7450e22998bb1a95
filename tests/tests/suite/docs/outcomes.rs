//! Causes every outcome in the table of `docs/reference/outcomes.md` and compares it with its line,
//! and checks that every outcome has a line.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use twofactor_core::limits::Limits;
use twofactor_core::realm::RealmRecord;
use twofactor_core::user::DeliveryMethod::{self, App, Email};
use twofactor_sidecar::testing::{REFUSALS, SUCCESSES};
use twofactor_tests::http::Reply;
use twofactor_tests::mail::{MailServer, MailStage, MailTls};
use twofactor_tests::redis::RedisServer;
use twofactor_tests::wait::eventually;

use crate::support::sidecar::{Served, metrics, shown, with_mail};
use crate::support::world::{World, names, record};

const BOUND: Duration = Duration::from_secs(10);

/// A line of the table.
#[derive(Clone, Debug)]
struct Line {
    asked: String,
    outcome: String,
    status: u16,
    detail: String,
    retry: bool,
    log: bool,
    metric: bool,
    history: Option<String>,
}

fn table() -> Vec<Line> {
    let page = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/outcomes.md"),
    )
    .unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [asked, outcome, status, detail, retry, log, metric, history, advice] = cells[..]
        else {
            panic!("{row}")
        };
        assert!(!advice.is_empty(), "{row}");
        let flag = |text: &str, yes: &str, no: &str| {
            assert!(text == yes || text == no, "{text} in {row}");
            text == yes
        };
        Line {
            asked: asked.to_owned(),
            outcome: outcome.trim_matches('`').to_owned(),
            status: status.parse().unwrap(),
            detail: detail.to_owned(),
            retry: flag(retry, "yes", "no"),
            log: flag(log, "audit", "—"),
            metric: flag(metric, "decision", "—"),
            history: (history != "—").then(|| history.trim_matches('`').to_owned()),
        }
    })
    .collect()
}

#[test]
fn every_outcome_has_a_line_in_the_table_and_every_line_an_outcome() {
    let described: BTreeSet<String> = table().into_iter().map(|line| line.outcome).collect();
    let existing: BTreeSet<String> =
        REFUSALS.iter().chain(SUCCESSES).map(|&outcome| outcome.to_owned()).collect();
    assert_eq!(described, existing);
}

/// A sidecar with Redis and a mail server, in which every outcome can be caused.
struct Scene {
    world: World,
    mail: MailServer,
    sidecar: Served,
    refused: Served,
}

impl Scene {
    async fn start(limits: Limits) -> Self {
        Self::start_for(limits, &["kms"]).await
    }

    async fn start_for(limits: Limits, callers: &[&str]) -> Self {
        let world = World::in_redis_with_real_time(RedisServer::start().await).await;
        let mail = MailServer::builder().tls(MailTls::StartTls).start().await;
        let callers = Some(callers.iter().map(|name| (*name).to_owned()).collect());
        world.fill_with(&RealmRecord { callers, limits, ..with_mail(&mail) }, &[]).await;
        let (sidecar, refused) =
            (Served::start(&world, "kms").await, Served::start(&world, "shop").await);
        Self { world, mail, sidecar, refused }
    }

    /// Requests `name` in the situation that the line describes. Returns `None` for an outcome that
    /// only a defect causes.
    async fn bring_about(&self, line: &Line, name: &str) -> Option<Reply> {
        match line.asked.as_str() {
            "generate" => Some(self.generate_with(&line.outcome, name).await),
            "verify" => Some(self.verify_with(&line.outcome, name).await),
            "any" if line.outcome == "internal-error" => None,
            "any" => Some(self.refused_before_routing(&line.outcome).await),
            _ => panic!("no such operation: {line:?}"),
        }
    }

    async fn generate_with(&self, outcome: &str, name: &str) -> Reply {
        match outcome {
            "delivered" => {
                self.world.person(name, Email).await;
                self.sidecar.generate(name).await
            }
            "unknown-user" => self.sidecar.generate(name).await,
            "no-secret" => {
                let mut seedless = record(name, Email);
                seedless.seed = None;
                self.world.publish(seedless, false).await;
                self.sidecar.generate(name).await
            }
            "no-delivery-method" => {
                self.world.person(name, App).await;
                self.sidecar.generate(name).await
            }
            "disabled-by-failures" => {
                self.disable(name, Email).await;
                self.sidecar.generate(name).await
            }
            "asked-too-soon" | "share-used-up" => {
                self.world.person(name, Email).await;
                assert_eq!(self.sidecar.generate(name).await.status, 200);
                self.sidecar.generate(name).await
            }
            "delivery-limit-reached" => {
                for name in ["first", name] {
                    self.world.person(name, Email).await;
                }
                assert_eq!(self.sidecar.generate("first").await.status, 200);
                self.sidecar.generate(name).await
            }
            "code-consumed" => self.consumed(name).await,
            "not-delivered" => {
                self.world.person(name, Email).await;
                self.mail.fail(MailStage::Rcpt, "550 5.1.1 no such mailbox", None).await;
                let reply = self.sidecar.generate(name).await;
                self.mail.heal().await;
                reply
            }
            "store-unavailable" => {
                self.during_an_outage(name, async || self.sidecar.generate(name).await).await
            }
            "namespace-not-allowed" => self.refused.api().generate(name).await,
            "malformed-request" => self.malformed("/auth/generate", name).await,
            _ => panic!("no request for the outcome {outcome} of generate"),
        }
    }

    async fn verify_with(&self, outcome: &str, name: &str) -> Reply {
        match outcome {
            "accepted" => {
                let person = self.world.person(name, App).await;
                self.sidecar.verify(name, &shown(&person)).await
            }
            "invalid-code" => {
                self.world.person(name, App).await;
                self.sidecar.verify(name, "00000000").await
            }
            "used-code" => {
                let person = self.world.person(name, App).await;
                let code = shown(&person);
                assert_eq!(self.sidecar.verify(name, &code).await.status, 200);
                self.sidecar.verify(name, &code).await
            }
            "unknown-user" => self.sidecar.verify(name, "000000").await,
            "disabled-by-failures" => {
                self.disable(name, App).await;
                self.sidecar.verify(name, "00000000").await
            }
            "throttled" => {
                self.world.person(name, App).await;
                for _ in 0..5 {
                    assert_eq!(self.sidecar.verify(name, "00000000").await.status, 401);
                }
                self.sidecar.verify(name, "00000000").await
            }
            "failures-used-up" => {
                self.world.person(name, App).await;
                assert_eq!(self.sidecar.verify(name, "00000000").await.status, 401);
                self.sidecar.verify(name, "00000000").await
            }
            "store-unavailable" => {
                self.during_an_outage(name, async || self.sidecar.verify(name, "000000").await)
                    .await
            }
            "namespace-not-allowed" => self.refused.api().verify(name, "000000").await,
            "malformed-request" => self.malformed("/auth/verify", name).await,
            _ => panic!("no request for the outcome {outcome} of verify"),
        }
    }

    async fn refused_before_routing(&self, outcome: &str) -> Reply {
        let api = self.sidecar.api();
        match outcome {
            "no-such-path" => api.get("/auth/nothing").await,
            "wrong-method" => api.get("/auth/verify").await,
            "foreign-origin" => {
                let headers = [("origin", "https://example.org")];
                api.raw("POST", "/auth/generate?username=alice", &headers, "").await
            }
            "invalid-host" => {
                let headers = [("host", "user@localhost")];
                api.raw("POST", "/auth/generate?username=alice", &headers, "").await
            }
            "body-too-large" => {
                let body = json!({ "username": "x".repeat(9000) });
                api.post_json("/auth/verify", &body).await
            }
            "body-too-slow" => self.too_slow().await,
            _ => panic!("no request for the outcome {outcome}"),
        }
    }

    async fn malformed(&self, path: &str, name: &str) -> Reply {
        self.sidecar.api().post_json(path, &json!({ "user": name })).await
    }

    /// The reply to a request while Redis does not answer.
    async fn during_an_outage(&self, name: &str, request: impl AsyncFn() -> Reply) -> Reply {
        self.world.person(name, App).await;
        self.world.redis().pause().await;
        let reply = request().await;
        self.world.redis().resume();
        eventually(BOUND, "recovery", async || {
            self.sidecar.verify("unknown", "000000").await.status == 404
        })
        .await;
        reply
    }

    /// Disables a user by a hundredth failure after ninety-nine in another namespace.
    async fn disable(&self, name: &str, method: DeliveryMethod) {
        let person = self.world.person(name, method).await;
        let state = names().user(&person.pseudonym).state;
        let mut connection = self.world.redis().connect().await;
        let set = redis::cmd("HSET").arg(state).arg("failures:elsewhere").arg(99).clone();
        set.exec_async(&mut connection).await.unwrap();
        assert_eq!(self.sidecar.verify(name, "00000000").await.status, 401);
    }

    /// Requests a code again in the step in which it was used.
    async fn consumed(&self, name: &str) -> Reply {
        self.world.person(name, Email).await;
        for _ in 0..3 {
            assert_eq!(self.sidecar.generate(name).await.status, 200);
            let text = self.mail.wait_for_message(&format!("{name}@example.org"), BOUND).await.text;
            let code = text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
            assert_eq!(self.sidecar.verify(name, &code).await.status, 200);
            let reply = self.sidecar.generate(name).await;
            // A new code is issued if a step began in between.
            if reply.status != 200 {
                return reply;
            }
        }
        panic!("a step began each time");
    }

    async fn too_slow(&self) -> Reply {
        let address = self.sidecar.api().base_url().strip_prefix("http://").unwrap().to_owned();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = "POST /auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = tokio::time::timeout(BOUND, stream.read(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let content_type = "application/problem+json".parse().unwrap();
        assert!(
            head.to_ascii_lowercase().contains("content-type: application/problem+json"),
            "{head}"
        );
        Reply {
            status,
            headers: [(reqwest::header::CONTENT_TYPE, content_type)].into_iter().collect(),
            body: body.to_owned(),
        }
    }
}

/// Whether a sentence matches the table, in which `…` stands for any text.
fn reads(sentence: &str, pattern: &str) -> bool {
    let mut rest = sentence;
    let parts: Vec<&str> = pattern.split('…').collect();
    for (number, part) in parts.iter().enumerate() {
        match rest.find(part) {
            Some(0) => rest = &rest[part.len()..],
            // The dots match any text, but the first part is at the start.
            Some(at) if number > 0 => rest = &rest[at + part.len()..],
            _ => return false,
        }
    }
    rest.is_empty() || pattern.ends_with('…')
}

#[tokio::test]
async fn the_sidecar_does_what_every_line_of_the_table_says() {
    // Limits are off except for the outcomes that they cause.
    let free = Scene::start(Limits::NONE).await;
    let usual = Scene::start(Limits::default()).await;
    let one_delivery = Scene::start(Limits { deliveries_per_hour: 1, ..Limits::NONE }).await;
    let one_failure = Scene::start(Limits { failures_per_day: 1, ..Limits::NONE }).await;
    let two = Limits { generates_per_hour: 2, ..Limits::NONE };
    let shared = Scene::start_for(two, &["kms", "bank"]).await;
    for (number, line) in table().iter().enumerate() {
        let name = format!("user{number}");
        let scene = match line.outcome.as_str() {
            "asked-too-soon" => &usual,
            "delivery-limit-reached" => &one_delivery,
            "failures-used-up" => &one_failure,
            "share-used-up" => &shared,
            _ => &free,
        };
        let Some(reply) = scene.bring_about(line, &name).await else { continue };
        let about = format!("{line:?}: {} {}", reply.status, reply.body);
        assert_eq!(reply.status, line.status, "{about}");
        assert_eq!(reply.header("retry-after").is_some(), line.retry, "{about}");
        let body: Value = reply.json();
        if line.status == 200 {
            assert!(body.get(line.detail.trim_matches('`')).is_some(), "{about}");
        } else {
            assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{about}");
            let kind = match line.outcome.as_str() {
                "disabled-by-failures" => "unknown-user",
                outcome => outcome,
            };
            assert_eq!(body["type"], format!("urn:fountainai:2fa:{kind}"), "{about}");
            assert!(reads(body["detail"].as_str().unwrap(), &line.detail), "{about}");
        }
        let sidecar =
            if line.outcome == "namespace-not-allowed" { &scene.refused } else { &scene.sidecar };
        let user = format!("username=\"{name}\"");
        let said = format!("operation=\"{}\" outcome=\"{}\" {user}", line.asked, line.outcome);
        let counted = format!(
            "twofactor_decisions_total{{operation=\"{}\",outcome=\"{}\"}}",
            line.asked, line.outcome
        );
        if line.log {
            let audit = sidecar.process().wait_for_line(&said, BOUND).await;
            assert!(audit.contains("audit"), "{audit}");
        } else {
            assert!(!sidecar.process().stderr().contains(&user), "{about}");
        }
        assert_eq!(metrics(sidecar).await.contains(&counted), line.metric, "{about}");
        let pseudonym = scene.world.keys().pseudonym(&name.parse().unwrap());
        let history = scene.world.publisher.store().history(&pseudonym).await.unwrap();
        let last = history.last().map(|entry| entry.outcome.clone());
        assert_eq!(last, line.history, "{about}: {history:?}");
    }
}
