//! Runs a service with two replicas that verifies continuously, collects every answer, and checks
//! them.
//!
//! The pods send the requests and record the answers themselves, so that answers count even if the
//! pods cannot be reached from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use twofactor_core::time::UnixMillis;
use twofactor_store::clock::Clock;
use twofactor_tests::wait::eventually_blocking;

use crate::START;
use crate::manifests::{self, APP, CLIENT_IMAGE, SIDECAR};
use crate::scene::Scene;

/// Users whose right codes are submitted.
const RIGHT: [&str; 4] = ["user-1", "user-2", "user-3", "user-4"];
/// The user of the wrong codes.
const WRONG: &str = "mallory";
const SELECTOR: &str = "app=load";
/// Period of their codes in seconds, the shortest possible, because the next code is waited for.
/// After a loss of Redis, codes are refused for two periods.
const PERIOD: u64 = 15;
const ACCEPTED_AGAIN: Duration = Duration::from_mins(3);

/// One line for each answer: second, step, user, right or wrong code, status, problem.
const SCRIPT: &str = r#"
trap 'exit 0' TERM
ask() {
  local now answer problem=none code
  now=$(date +%s)
  code=$(oathtool --totp --base32 --time-step-size="${PERIOD}s" --now="@$((now - $4))" "$2")
  answer=$(curl --silent --max-time 5 --write-out '\n%{http_code}' --json "{\"username\":\"$1\",\"otp_code\":\"$code\"}" http://127.0.0.1:8004/auth/verify)
  if [[ $answer =~ urn:fountainai:2fa:([a-z-]+) ]]; then problem=${BASH_REMATCH[1]}; fi
  echo "answer $now $((now / PERIOD)) $1 $3 ${answer##*$'\n'} $problem"
}
round=0
while :; do
  for user in $RIGHT; do ask "${user%%=*}" "${user#*=}" right 0; done
  # A code of a quarter of an hour ago.
  if ((round++ % 20 == 0)); then ask "${WRONG%%=*}" "${WRONG#*=}" wrong 900; fi
  sleep 0.2
done
"#;

/// One answer to one replica.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Unix time in seconds.
    pub(crate) second: u64,
    step: u64,
    user: String,
    right: bool,
    pub(crate) status: u16,
    problem: String,
}

pub(crate) struct Load<'a> {
    scene: &'a Scene<'a>,
    pub(crate) people: String,
    pub(crate) namespace: String,
    /// Answers count from this second on, because a sidecar has no store in its first moments.
    since: u64,
}

/// The current time in the unit of the answers.
pub(crate) fn now() -> u64 {
    UnixMillis::millis(Clock::System.now()) / 1000
}

impl<'a> Load<'a> {
    /// Starts the service, and returns when a code of each user has been accepted.
    pub(crate) fn start(scene: &'a Scene<'a>) -> Self {
        let (people, namespace) = (scene.namespace("people"), scene.restricted_namespace("load"));
        let mut load = Self { scene, people, namespace, since: 0 };
        let app = json!({ "deliveryMethod": "app", "totp": { "periodSeconds": PERIOD } });
        let users: Vec<_> = RIGHT.iter().chain([&WRONG]).map(|name| (*name, app.clone())).collect();
        scene.users(&load.people, &users);
        scene.realm(&load.people, &[&load.namespace], None);
        let seed_of = |name: &&str| format!("{name}={}", scene.seed(&load.people, name));
        let right: Vec<_> = RIGHT.iter().map(seed_of).collect();
        let mut spec = manifests::pod_spec(CLIENT_IMAGE, &["bash", "-c", SCRIPT]);
        spec["containers"][0]["env"] = json!([
            { "name": "RIGHT", "value": right.join(" ") },
            { "name": "WRONG", "value": seed_of(&WRONG) },
            { "name": "PERIOD", "value": PERIOD.to_string() },
        ]);
        let metadata = json!({ "labels": { "app": "load" }, "annotations": {} });
        let template =
            manifests::with_sidecar(json!({ "metadata": metadata, "spec": spec }), &load.people);
        scene.create(&json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "namespace": load.namespace, "name": "load" },
            "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "load" } }, "template": template },
        }));
        scene.kubectl().wait_for_rollout(START, &load.namespace, "deployment/load");
        load.wait_until_accepted_after(0);
        load.since = now();
        load
    }

    /// All answers so far, of both replicas.
    pub(crate) fn answers(&self) -> Result<Vec<Answer>, String> {
        Ok(self.logs(APP)?.lines().filter_map(answer).collect())
    }

    /// The whole logs of a container of both replicas.
    fn logs(&self, container: &str) -> Result<String, String> {
        let selected = ["--selector", SELECTOR, "--namespace", &self.namespace];
        let args = [&["logs", "--tail=-1", "--container", container], &selected[..]].concat();
        self.scene.kubectl().try_run(&args)
    }

    /// What the sidecars say of requests without a decision.
    fn warnings(&self) -> String {
        let logs = self.logs(SIDECAR).unwrap_or_else(|error| error);
        let is_shown = |line: &&str| {
            !line.contains("\"level\":\"INFO\"") || line.contains("store-unavailable")
        };
        logs.lines().filter(is_shown).take(50).collect::<Vec<_>>().join("\n")
    }

    /// Waits until a code of each user has been accepted after this second.
    pub(crate) fn wait_until_accepted_after(&self, second: u64) {
        eventually_blocking(ACCEPTED_AGAIN, "a code of each user to be accepted", || {
            let answers = self.answers()?;
            let is_accepted = |user: &&str| {
                answers.iter().any(|answer| {
                    answer.user == **user && answer.status == 200 && answer.second > second
                })
            };
            let missing: Vec<_> = RIGHT.iter().filter(|user| !is_accepted(user)).collect();
            let last: Vec<_> = answers.iter().rev().take(6).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("not yet {missing:?}; {last:?}")) }
        });
    }

    /// Waits until both replicas have answered after this second.
    pub(crate) fn wait_until_answered_after(&self, second: u64) {
        eventually_blocking(START, "answers after what happened", || {
            let answers = self.answers()?;
            if answers.iter().filter(|answer| answer.second > second).count() > 20 {
                Ok(())
            } else {
                Err("too few".to_owned())
            }
        });
    }

    /// Panics if an answer was wrong: a code accepted twice, a wrong code accepted, a right one
    /// refused as wrong, or an outage outside these seconds. Returns the number of answers, and
    /// those that were part of an outage.
    pub(crate) fn check(&self, outages: &[(u64, u64)]) -> (usize, Vec<Answer>) {
        let answers = self.answers().expect("the answers");
        let mut accepted: BTreeMap<(&str, u64), u32> = BTreeMap::new();
        let mut refused = Vec::new();
        for answer in &answers {
            let Answer { step, user, .. } = answer;
            match (answer.right, answer.status, answer.problem.as_str()) {
                (true, 200, _) => *accepted.entry((user, *step)).or_default() += 1,
                (true, 400, "used-code") | (false, 401 | 429, _) => {}
                (_, 503, _) if answer.second <= self.since => {}
                (_, 503, _) => refused.push(answer.clone()),
                _ => panic!("a wrong answer: {answer:?}"),
            }
        }
        let twice: Vec<_> = accepted.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "accepted more than once (user, step: times): {twice:?}");
        let is_allowed = |answer: &Answer| {
            outages.iter().any(|(from, to)| (*from..=*to).contains(&answer.second))
        };
        let beyond: Vec<_> = refused.iter().filter(|answer| !is_allowed(answer)).collect();
        assert!(
            beyond.is_empty(),
            "outages were expected at {outages:?}, but there were {beyond:?}:\n{}",
            self.warnings()
        );
        (answers.len(), refused)
    }

    /// Restarts of each container of the service. No event elsewhere may cause one.
    pub(crate) fn restarts(&self) -> Vec<Value> {
        let pods = self.scene.kubectl().get(&[
            "pods",
            "--selector",
            SELECTOR,
            "--namespace",
            &self.namespace,
        ]);
        let pods = pods["items"].as_array().expect("pods");
        let statuses = |pod: &Value| {
            ["initContainerStatuses", "containerStatuses"]
                .map(|list| pod["status"][list][0]["restartCount"].clone())
        };
        pods.iter().flat_map(statuses).collect()
    }
}

fn answer(line: &str) -> Option<Answer> {
    let mut words = line.strip_prefix("answer ")?.split(' ');
    Some(Answer {
        second: words.next()?.parse().ok()?,
        step: words.next()?.parse().ok()?,
        user: words.next()?.to_owned(),
        right: words.next()? == "right",
        status: words.next()?.parse().ok()?,
        problem: words.next()?.to_owned(),
    })
}
