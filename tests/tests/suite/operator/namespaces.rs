//! Tests an operator that is limited to namespaces, with the roles that the chart makes for it: it
//! has no right on Secrets elsewhere, and lacks of rights in one namespace hold up no other.

use std::path::PathBuf;

use twofactor_tests::operator::{OperatorBuilder, OperatorProcess};
use twofactor_tests::process::{run, try_run};
use twofactor_tests::tools;
use twofactor_tests::wait::eventually;

use crate::support::cluster::{BOUND, Cluster, Sidecar, app_user, code_of};

/// What an account may do in a namespace: lines of resource, names and verbs.
fn rights(kubeconfig: &std::path::Path, namespace: &str) -> Vec<String> {
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let args = [kubeconfig.as_str(), "auth", "can-i", "--list", "--no-headers", "-n", namespace];
    let list = try_run(tools::find_kubernetes("kubectl"), &args).unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    // Every account may ask what it may do, and which versions there are.
    let is_own = |line: &String| !line.starts_with("selfsubject") && !line.starts_with('[');
    let mut lines: Vec<String> = list.lines().map(words).filter(is_own).collect();
    lines.sort();
    lines.dedup();
    lines
}

const OF_THE_CLUSTER: &str = "namespaces [] [] [get list watch]";
const OF_SERVICES: [&str; 3] = [
    "events.events.k8s.io [] [] [create]",
    "pods [] [] [list watch]",
    "secrets [] [] [get list watch create patch delete]",
];
const OF_USERS: [&str; 4] = [
    "twofactorrealms.twofactor.fountainai.io [] [] [get list watch]",
    "twofactorrealms.twofactor.fountainai.io/status [] [] [patch]",
    "twofactorusers.twofactor.fountainai.io [] [] [get list watch]",
    "twofactorusers.twofactor.fountainai.io/status [] [] [patch]",
];
const OF_ITS_NAMESPACE: [&str; 8] = [
    "events.events.k8s.io [] [] [create]",
    "leases.coordination.k8s.io [] [] [create]",
    "leases.coordination.k8s.io [] [LEASE] [get update]",
    "secrets [] [twofactor-keys] [get patch]",
    "secrets [] [twofactor-master-key] [get]",
    "secrets [] [twofactor-redis-certificate] [get list watch update]",
    "secrets [] [twofactor-redis] [get list watch]",
    "secrets [] [twofactor-secret-key] [get]",
];
/// `kubectl` shows this only where there is no more on Secrets.
const TO_MAKE_ITS_SECRETS: &str = "secrets [] [] [create]";

fn expected(lists: &[&[&str]], lease: &str) -> Vec<String> {
    let mut all: Vec<String> =
        lists.iter().copied().flatten().map(|line| line.replace("LEASE", lease)).collect();
    all.sort();
    all.dedup();
    all
}

/// An operator with the roles of a release that names namespaces.
struct Limited {
    cluster: Cluster,
    /// Name of the release's roles and account.
    name: String,
    kubeconfig: PathBuf,
    users: Vec<String>,
    services: Vec<String>,
}

impl Limited {
    async fn new(users: &[&str], services: &[&str]) -> Self {
        let cluster = Cluster::start().await;
        let in_cluster = |prefix: &&str| cluster.another_namespace(prefix);
        let mut all = vec![cluster.namespace.clone()];
        all.extend(users.iter().map(in_cluster));
        let services: Vec<String> = services.iter().map(in_cluster).collect();
        let (home, name) = (cluster.home.clone(), format!("limited-{}", cluster.home));
        let chart = format!("{}/../charts/fountainai-2fa", env!("CARGO_MANIFEST_DIR"));
        let of_services = match services.join(",") {
            none if none.is_empty() => String::new(),
            names => format!(",operator.serviceNamespaces={{{names}}}"),
        };
        let values = format!("name={name},operator.namespaces={{{}}}{of_services}", all.join(","));
        let templates = ["rbac", "serviceaccount", "policy"]
            .map(|name| format!("--show-only=templates/{name}.yaml"));
        let args = ["template", "x", &chart, "--namespace", &home, "--set", &values];
        let templates = templates.each_ref().map(String::as_str);
        cluster.apply_anywhere(&run(tools::find("helm"), &[&args[..], &templates].concat()));
        let kubeconfig = cluster.server.kubeconfig_for_service_account(&home, &name);
        Self { cluster, name, kubeconfig, users: all, services }
    }

    fn operator(&self) -> OperatorBuilder {
        let users = self.users.join(",");
        // As the chart does.
        let services = [&self.users[..], &self.services].concat().join(",");
        OperatorProcess::builder(&self.kubeconfig)
            .args(["--namespace", &users, "--service-namespace", &services])
            .args(["--operator-namespace", &self.cluster.home, "--lease", &self.name])
            .env("REDIS_URL", &self.cluster.redis.url())
            .env("POD_NAME", "operator-0")
    }

    /// Takes the operator's rights in a namespace, and returns what gives them back.
    fn take_rights(&self, namespace: &str) -> impl Fn() {
        let binding = format!("{}-namespace", self.name);
        let kubectl = move |args: &[&str]| {
            self.cluster.server.kubectl(&[&["--namespace", namespace], args].concat())
        };
        let _ = kubectl(&["delete", "rolebinding", &binding]);
        let subject = format!("--serviceaccount={}:{}", self.cluster.home, self.name);
        let role = format!("--role={binding}");
        move || drop(kubectl(&["create", "rolebinding", &binding, &role, &subject]))
    }
}

async fn metrics(operator: &OperatorProcess) -> String {
    operator.admin().get("/metrics").await.body
}

/// Waits until a sidecar has the user with this seed, or has not.
async fn wait_known(sidecar: &Sidecar, user: &str, known: bool) {
    eventually(BOUND, format_args!("{user} to be known: {known}"), async || {
        let reply = sidecar.api.verify(user, "00000000").await;
        if reply.status == if known { 401 } else { 404 } { Ok(()) } else { Err(reply.body) }
    })
    .await;
}

#[tokio::test]
async fn the_rights_of_an_operator_for_all_namespaces_are_these() {
    let cluster = Cluster::start().await;
    let everywhere = [&[OF_THE_CLUSTER][..], &OF_SERVICES, &OF_USERS];
    for namespace in [cluster.namespace.as_str(), "default"] {
        assert_eq!(rights(&cluster.kubeconfig, namespace), expected(&everywhere, ""));
    }
    let home = [&everywhere[..], &[&OF_ITS_NAMESPACE[..]]].concat();
    assert_eq!(rights(&cluster.kubeconfig, &cluster.home), expected(&home, "twofactor-operator"));
}

#[tokio::test]
async fn an_operator_limited_to_namespaces_works_and_has_no_right_on_secrets_elsewhere() {
    let limited = Limited::new(&[], &["kms"]).await;
    let (cluster, kms) = (&limited.cluster, limited.services[0].as_str());
    let rights = |namespace: &str| rights(&limited.kubeconfig, namespace);
    let of = |lists: &[&[&str]]| expected(lists, &limited.name);
    assert_eq!(rights("default"), of(&[&[OF_THE_CLUSTER]]));
    assert_eq!(rights(kms), of(&[&[OF_THE_CLUSTER], &OF_SERVICES]));
    assert_eq!(rights(&cluster.namespace), of(&[&[OF_THE_CLUSTER], &OF_SERVICES, &OF_USERS]));
    assert_eq!(
        rights(&cluster.home),
        of(&[&[OF_THE_CLUSTER, TO_MAKE_ITS_SECRETS], &OF_ITS_NAMESPACE])
    );

    let operator = limited.operator().start().await;
    let far = cluster.another_namespace("far");
    cluster.apply(&app_user("carol"));
    let realm = |names: &str| {
        cluster.apply(&format!(
            "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata:\n  \
             name: default\nspec:\n  allowedNamespaces:\n    names: [{names}]\n"
        ));
    };
    realm(kms);
    cluster.wait_ready("carol").await;
    let sidecar = cluster.sidecar_in(kms).await;
    sidecar.wait_accepted("carol", &cluster.seed("carol")).await;
    let _ = cluster.kubectl(&["delete", "secret", "carol-totp"]);
    eventually(BOUND, "the Secret to be restored", async || cluster.get("secret", "carol-totp"))
        .await;
    // A namespace out of reach is said, and the others are served.
    realm(&format!("{kms}, {far}"));
    cluster.ask_from(&far);
    let message = eventually(BOUND, "the condition", async || {
        match cluster.condition_of("tfr", "default", "CredentialsReady") {
            Some((_, reason, message)) if reason == "NamespaceOutOfReach" => Ok(message),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(message.contains(&far) && message.contains("--service-namespace"), "{message}");
    realm("");
    eventually(BOUND, "the credentials to be removed", async || {
        if cluster.credentials_in(kms, "caller").is_none() { Ok(()) } else { Err("there") }
    })
    .await;
    let log = operator.process().output();
    assert!(!log.contains("orbidden"), "{log}");
}

#[tokio::test]
async fn a_namespace_without_rights_is_left_as_it_is_and_holds_up_no_other() {
    let limited = Limited::new(&["staff"], &[]).await;
    let (cluster, staff) = (&limited.cluster, limited.users[1].as_str());
    let in_staff =
        |user: &str| app_user(user).replace("  name:", &format!("  namespace: {staff}\n  name:"));
    let first = limited.operator().start().await;
    cluster.apply_anywhere(&in_staff("alice"));
    cluster.ask_for(staff, staff);
    let sidecar = cluster.sidecar_of(staff, staff).await;
    wait_known(&sidecar, "alice", true).await;
    drop(first);

    let give_rights_back = limited.take_rights(staff);
    let operator = limited.operator().start().await;
    let line = "watch forbidden: the operator lacks rights in a namespace";
    operator.process().wait_for_line(line, BOUND).await;
    cluster.apply(&app_user("carol"));
    cluster.wait_ready("carol").await;
    operator.process().wait_for_line("Redis searched for orphaned keys", BOUND).await;
    let forbidden =
        |resource: &str| format!("twofactor_watches_forbidden{{resource=\"{resource}\"}} 1");
    for resource in ["twofactorusers", "twofactorrealms", "secrets", "pods"] {
        assert!(metrics(&operator).await.contains(&forbidden(resource)), "{resource}");
    }
    // Users and logins of the namespace stay, and a flushed realm is not declared complete.
    wait_known(&sidecar, "alice", true).await;
    cluster.redis.flush_all().await;
    let carols = cluster.sidecar().await;
    wait_known(&carols, "carol", true).await;
    assert_eq!(sidecar.api.verify("alice", "00000000").await.status, 503);

    give_rights_back();
    wait_known(&sidecar, "alice", true).await;
    eventually(BOUND, "the metric to be 0", async || {
        let metrics = metrics(&operator).await;
        if metrics.contains("twofactor_watches_forbidden{") { Err(metrics) } else { Ok(()) }
    })
    .await;
    cluster.apply_anywhere(&in_staff("bob"));
    wait_known(&sidecar, "bob", true).await;

    // Rights that go while the operator runs: what is known stays, and is followed afterwards.
    let give_rights_back = limited.take_rights(staff);
    eventually(BOUND, "the watches to be refused", async || {
        let metrics = metrics(&operator).await;
        if metrics.contains(&forbidden("twofactorusers")) { Ok(()) } else { Err(metrics) }
    })
    .await;
    let _ = cluster.server.kubectl(&["--namespace", staff, "delete", "tfu", "bob"]);
    wait_known(&sidecar, "bob", true).await;
    give_rights_back();
    wait_known(&sidecar, "bob", false).await;
    wait_known(&sidecar, "alice", true).await;
    let seed =
        String::from_utf8(cluster.secret_in(staff, "alice-totp", "secret").unwrap()).unwrap();
    assert_ne!(sidecar.api.verify("alice", &code_of(&seed)).await.status, 404);
}
