//! Checks an installation from inside the cluster, for `helm test`: whether every part answers, and
//! whether a user and a pod get what they should. Prints a line for each finding.
//!
//! It makes one user and one pod in a namespace that is there for the test, and deletes both.

mod asked;
mod codes;
mod failure;

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use twofactor_api::{TwoFactorUser, labels};

use self::asked::Replicas;
pub use self::codes::verify;
use self::failure::{Failure, failure};
use crate::k8s::request::{self, ApiError};

/// Timeout for each finding. Pods may still be starting when the test begins.
const BOUND: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_secs(1);
/// Reason of a user that waits for its Secret, because new seeds are held.
const HELD: &str = "NewSeedsHeld";
/// Name of the user and of the pod.
const NAME: &str = "self-test";

/// What is tested.
#[derive(Debug)]
pub struct Settings {
    /// Host and port of the controller's metrics; the name has the addresses of all replicas.
    pub controller: String,
    /// Host and port of admission's metrics.
    pub admission: String,
    /// Namespace for the user and the pod. Nothing: neither is made.
    pub namespace: Option<String>,
    /// Image of the pod, which is that of the operator.
    pub image: String,
}

/// Runs all checks, and ends with the first that fails.
///
/// # Errors
/// The check that has failed, and what was found.
pub async fn run(client: Client, settings: Settings) -> Result<(), Failure> {
    let controller = Replicas::new(&settings.controller);
    let admission = Replicas::new(&settings.admission);
    let leaders = async || controller.count("twofactor_leader", 1).await;
    let replicas =
        within("one replica of the controller leads", async || match leaders().await? {
            (1, all) => Ok(all),
            (leading, all) => Err(format!("{leading} of {all} replicas lead")),
        })
        .await?;
    say(&format!("one of {replicas} replicas of the controller leads"));
    within("Redis answers the leader", async || {
        let (up, _) = controller.count("twofactor_store_up", 1).await?;
        if up == 1 { Ok(()) } else { Err("it does not".to_owned()) }
    })
    .await?;
    say("Redis answers the leader");
    let settings_of_redis = controller.values("twofactor_redis_weakness").await;
    for (labels, value) in settings_of_redis.unwrap_or_default() {
        let state =
            if value == "1" { "WEAK: see docs/operations/redis.md" } else { "as it should be" };
        say(&format!("setting of Redis {labels}: {state}"));
    }
    let replicas = within("the API server trusts every replica of the webhook", async || {
        match admission.count("twofactor_webhook_trusted", 1).await? {
            (trusted, all) if trusted == all && all > 0 => Ok(all),
            (trusted, all) => Err(format!("{trusted} of {all} are trusted")),
        }
    })
    .await?;
    say(&format!("the API server trusts {replicas} replicas of the webhook"));
    let Some(namespace) = &settings.namespace else {
        say("no namespace for a user and a pod is given: the rest is left out");
        return Ok(());
    };
    let people = People {
        users: Api::namespaced(client.clone(), namespace),
        pods: Api::namespaced(client, namespace),
    };
    let checked = people.check(&settings.image).await;
    let removed = people.remove(&controller).await;
    checked?;
    removed
}

/// Whether the user has got a seed without asking for one.
#[derive(PartialEq, Eq)]
enum Seed {
    Made,
    /// Secrets are being restored, so the operator makes a seed only for users that ask for it.
    Held,
}

/// The user and the pod of the test.
struct People {
    users: Api<TwoFactorUser>,
    pods: Api<Pod>,
}

impl People {
    async fn check(&self, image: &str) -> Result<(), Failure> {
        let user = TwoFactorUser::new(NAME, user_spec());
        let created = request::within(self.users.create(&PostParams::default(), &user)).await;
        created.map_err(|error| failure("a user is created", &error))?;
        let begun = Instant::now();
        if self.ready_or_held().await? == Seed::Held {
            say("new seeds are held (operator.holdNewSeeds): users without a Secret wait for it");
            let ask =
                json!({ "metadata": { "annotations": { (labels::ROTATE_ANNOTATION): NAME } } });
            let (params, ask) = (PatchParams::default(), Patch::Merge(ask));
            api(request::within(self.users.patch(NAME, &params, &ask)).await)
                .map_err(|error| failure("the user asks for a seed", &error))?;
            within("the user becomes ready", async || match self.ready().await? {
                Ok(()) => Ok(()),
                Err((reason, message)) => Err(format!("{reason}: {message}")),
            })
            .await?;
        }
        say(&format!("a user becomes ready ({:.1} s)", begun.elapsed().as_secs_f64()));
        let begun = Instant::now();
        let pod = within("a labelled pod is created", async || {
            api(request::within(self.pods.create(&PostParams::default(), &pod(image))).await)
        })
        .await?;
        let init = pod.spec.and_then(|spec| spec.init_containers).unwrap_or_default();
        if !init.iter().any(|container| container.name == labels::SIDECAR_CONTAINER) {
            let why = "it has none: did the API server call the webhook?";
            return Err(failure("the webhook gives the pod a sidecar", &why));
        }
        say("the webhook gives a labelled pod its sidecar");
        within("the pod verifies a code", async || {
            let pod = api(request::within(self.pods.get_status(NAME)).await)?;
            let status = pod.status.unwrap_or_default();
            match status.phase.as_deref() {
                Some("Succeeded") => Ok(()),
                phase => Err(format!("phase {phase:?}, {}", codes::said(&status))),
            }
        })
        .await?;
        say(&format!("the pod verifies a code ({:.1} s)", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Waits until the user is ready, or waits for its Secret because new seeds are held.
    async fn ready_or_held(&self) -> Result<Seed, Failure> {
        within("the user becomes ready", async || match self.ready().await? {
            Ok(()) => Ok(Seed::Made),
            Err((reason, _)) if reason == HELD => Ok(Seed::Held),
            Err((reason, message)) => Err(format!("{reason}: {message}")),
        })
        .await
    }

    /// Whether the user is ready, or the reason and the message of its condition.
    async fn ready(&self) -> Result<Result<(), (String, String)>, String> {
        let user = api(request::within(self.users.get_status(NAME)).await)?;
        let conditions = user.status.map(|status| status.conditions).unwrap_or_default();
        match conditions.into_iter().find(|it| it.type_ == labels::CONDITION_READY) {
            Some(ready) if ready.status == "True" => Ok(Ok(())),
            Some(ready) => Ok(Err((ready.reason, ready.message))),
            None => Err("it has no condition yet".to_owned()),
        }
    }

    /// Deletes both, and waits until nothing of the user is left in Redis.
    async fn remove(&self, controller: &Replicas) -> Result<(), Failure> {
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let gone = async || {
            let user = request::within(self.users.delete(NAME, &DeleteParams::default())).await;
            let pod = request::within(self.pods.delete(NAME, &at_once)).await;
            match (request::optional(user), request::optional(pod)) {
                (Ok(None), Ok(None)) => Ok(()),
                (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
                _ => Err("they still exist".to_owned()),
            }
        };
        within("user and pod are removed", gone).await?;
        within("the user is removed from Redis", async || {
            let pending = controller.values("twofactor_removals_pending").await?;
            let left = pending.iter().any(|(_, value)| value != "0");
            if left { Err("removals are pending".to_owned()) } else { Ok(()) }
        })
        .await?;
        say("everything is removed again");
        Ok(())
    }
}

fn user_spec() -> twofactor_api::user::TwoFactorUserSpec {
    serde_json::from_value(json!({ "deliveryMethod": "app" }))
        .unwrap_or_else(|_| unreachable!("the field exists"))
}

/// A pod that Pod Security "restricted" admits. Its app submits the code of the user's seed.
fn pod(image: &str) -> Pod {
    let seed = json!({ "secretKeyRef": { "name": format!("{NAME}-totp"), "key": "secret" } });
    let pod = json!({
        "metadata": { "name": NAME, "labels": { (labels::INJECT_LABEL): "true" } },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "activeDeadlineSeconds": BOUND.as_secs(),
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "app",
                "image": image,
                "args": ["self-test-verify"],
                "env": [
                    { "name": "TWOFACTOR_USERNAME", "value": NAME },
                    { "name": "TWOFACTOR_SEED", "valueFrom": seed },
                ],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "resources": {
                    "requests": { "cpu": "10m", "memory": "16Mi" },
                    "limits": { "cpu": "200m", "memory": "64Mi" },
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    });
    serde_json::from_value(pod).unwrap_or_else(|_| unreachable!("these are fields of a pod"))
}

/// Asks until there is a result, for two minutes at most.
async fn within<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, Failure> {
    let end = Instant::now() + BOUND;
    loop {
        match ask().await {
            Ok(found) => return Ok(found),
            Err(why) if Instant::now() >= end => return Err(failure(what, &why)),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn api<T>(result: Result<T, ApiError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

#[expect(clippy::print_stdout, reason = "the command's purpose is to print")]
fn say(finding: &str) {
    println!("ok: {finding}");
}
