//! Tests the harness itself, on which the other tests rely.

use std::path::Path;
use std::time::{Duration, Instant};

use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use redis::AsyncCommands;
use twofactor_tests::apiserver::ApiServer;
use twofactor_tests::http::ApiClient;
use twofactor_tests::mail::{MailServer, MailStage, MailTls};
use twofactor_tests::process::{Launch, Signal};
use twofactor_tests::redis::{AppendFsync, RedisServer};
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::wait::{eventually, eventually_blocking};
use twofactor_tests::{ports, scratch, tools};

const SOON: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Launch {
    Launch::new("/bin/sh").args(["-c", script])
}

fn runs(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
#[should_panic(expected = "for the moon: still behind the hill")]
async fn an_exceeded_bound_names_what_was_waited_for_and_the_last_reason() {
    let never = async || Err::<(), _>("still behind the hill");
    eventually(Duration::from_millis(50), "the moon", never).await;
}

#[tokio::test]
#[should_panic(expected = "for a sign: the probe did not return")]
async fn a_probe_that_hangs_ends_at_the_bound() {
    eventually(Duration::from_millis(50), "a sign", async || std::future::pending::<bool>().await)
        .await;
}

#[test]
fn a_port_is_returned_once() {
    let mut ports: Vec<_> = (0..200).map(|_| ports::free_port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 200);
}

#[test]
#[should_panic(expected = "no-such-program is not installed: run `make tools`")]
fn a_missing_program_is_named_with_the_way_to_get_it() {
    let _ = tools::find("no-such-program");
}

#[test]
#[should_panic(expected = "run `cargo build --workspace`")]
fn a_missing_binary_of_the_project_is_named_with_the_way_to_get_it() {
    let _ = tools::project_binary("no-such-binary");
}

#[test]
fn a_folder_is_removed_with_its_owner() {
    let folder = scratch::folder("owner");
    let path = folder.path().to_owned();
    assert!(path.is_dir());
    drop(folder);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_process_is_read_on_both_outputs_and_ends_by_itself() {
    let process = shell("echo out; echo err >&2; exit 3").start();
    assert_eq!(process.wait_for_line("er", SOON).await, "err");
    assert_eq!(process.wait_exit(SOON).await.code(), Some(3));
    assert_eq!((process.stdout().as_str(), process.stderr().as_str()), ("out\n", "err\n"));
}

#[tokio::test]
#[should_panic(expected = "sh ended (exit status: 3)")]
async fn waiting_for_a_line_of_a_process_that_ended_fails_at_once() {
    let process = shell("exit 3").start();
    process.wait_for_line("ready", Duration::from_hours(1)).await;
}

#[tokio::test]
async fn a_process_that_ignores_the_request_to_end_is_killed_on_drop() {
    let process = shell("trap '' TERM; echo ready; while :; do :; done")
        .patience(Duration::from_millis(100))
        .start();
    process.wait_for_line("ready", SOON).await;
    let pid = process.id();
    drop(process);
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_paused_process_ends_when_it_is_stopped() {
    let process = shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do :; done").start();
    process.wait_for_line("ready", SOON).await;
    process.pause().await;
    assert!(process.stop().success());
    assert_eq!(process.output(), "ready\nbye\n");
    process.signal(Signal::Kill);
}

#[test]
fn a_child_outlives_the_thread_that_asked_for_it() {
    let child = std::thread::spawn(|| shell("echo ready; exec tail -f /dev/null").start());
    let process = child.join().expect("a thread that ends");
    eventually_blocking(SOON, "the child's first line", || process.stdout().contains("ready"));
    process.assert_running();
}

#[test]
fn the_developers_own_settings_can_be_hidden() {
    let process = shell("env; pwd; ls -A").isolated().env("SEEN", "yes").start();
    eventually_blocking(SOON, "the end", || process.try_exit());
    assert!(process.stdout().contains("SEEN=yes\n"));
    assert!(!process.stdout().contains("CARGO"));
    let home =
        process.stdout().lines().find_map(|line| line.strip_prefix("HOME=").map(str::to_owned));
    assert_eq!(process.stdout().lines().last(), home.as_deref());
}

#[tokio::test]
async fn redis_loses_unsaved_data_in_a_crash() {
    let redis = RedisServer::start().await;
    let () = redis.connect().await.set("key", "value").await.expect("SET");
    redis.restart().await;
    assert!(!redis.connect().await.exists::<_, bool>("key").await.expect("EXISTS"));
}

#[tokio::test]
async fn redis_keeps_flushed_writes_through_a_crash_on_the_same_port() {
    let redis = RedisServer::builder()
        .append_only(AppendFsync::Always)
        .password("opensesame")
        .start()
        .await;
    let () = redis.connect().await.set("key", "value").await.expect("SET");
    let (port, first) = (redis.port(), redis.process().id());
    assert!(!redis.kill().success());
    redis.restart().await;
    assert_eq!(redis.port(), port);
    assert_ne!(redis.process().id(), first);
    assert_eq!(redis.connect().await.get::<_, String>("key").await.expect("GET"), "value");
    redis.flush_all().await;
    assert!(!redis.connect().await.exists::<_, bool>("key").await.expect("EXISTS"));

    let without_password =
        redis::Client::open(format!("redis://127.0.0.1:{port}/0")).expect("a URL");
    let mut anonymous =
        without_password.get_multiplexed_async_connection().await.expect("a connection");
    assert!(anonymous.get::<_, Option<String>>("key").await.is_err());
}

#[tokio::test]
async fn a_paused_redis_answers_when_it_is_resumed() {
    let redis = RedisServer::start().await;
    let mut connection = redis.connect().await;
    redis.pause().await;
    let held =
        tokio::time::timeout(Duration::from_millis(100), connection.exists::<_, bool>("key")).await;
    assert!(held.is_err());
    redis.resume();
    assert!(!connection.exists::<_, bool>("key").await.expect("EXISTS"));
}

#[tokio::test]
async fn the_clock_of_redis_stands_where_it_was_set_inside_and_outside_of_scripts() {
    let redis = RedisServer::builder().with_movable_clock().start().await;
    let clock = redis.clock();
    let started = clock.unix_millis().await;
    let mut connection = redis.connect().await;
    for millis in [
        1_700_000_000_000,
        1_700_000_029_999,
        1_700_003_600_001,
        1_600_000_000_123,
        4_102_444_799_999,
    ] {
        let asked = Instant::now();
        clock.set_unix_millis(millis).await;
        let outside: (u64, u64) =
            redis::cmd("TIME").query_async(&mut connection).await.expect("TIME");
        let inside: (u64, u64) = redis::Script::new("return redis.call('TIME')")
            .invoke_async(&mut connection)
            .await
            .expect("TIME in a script");
        assert_eq!(outside, (millis / 1000, millis % 1000 * 1000));
        assert_eq!(inside, outside);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
    clock.advance(Duration::from_millis(1)).await;
    assert_eq!(clock.unix_millis().await, 4_102_444_800_000);
    clock.release().await;
    let now = clock.unix_millis().await;
    assert!((started..started + 60_000).contains(&now), "{started} {now}");
}

#[tokio::test]
async fn every_millisecond_of_a_second_can_be_shown_by_redis() {
    let redis = RedisServer::builder().with_movable_clock().start().await;
    for millis in (1_795_364_092_000..1_795_364_093_000).step_by(7) {
        redis.clock().set_unix_millis(millis).await;
    }
}

#[tokio::test]
async fn keys_expire_by_the_clock_that_was_set() {
    let redis = RedisServer::builder().with_movable_clock().start().await;
    let mut connection = redis.connect().await;
    let clock = redis.clock();
    clock.set_unix_millis(1_700_000_000_000).await;
    let () = connection.set("key", "value").await.expect("SET");
    let () = connection.pexpire_at("key", 1_700_000_005_000).await.expect("PEXPIREAT");
    // A key expires after its moment, not in it.
    clock.set_unix_millis(1_700_000_005_000).await;
    assert!(connection.exists::<_, bool>("key").await.expect("EXISTS"));
    clock.set_unix_millis(1_700_000_005_001).await;
    assert!(!connection.exists::<_, bool>("key").await.expect("EXISTS"));
}

#[tokio::test]
async fn the_clock_of_redis_stays_where_it_was_set_through_a_restart() {
    let redis =
        RedisServer::builder().with_movable_clock().append_only(AppendFsync::Always).start().await;
    redis.clock().set_unix_millis(1_700_000_000_500).await;
    redis.kill();
    redis.restart().await;
    assert_eq!(redis.clock().unix_millis().await, 1_700_000_000_500);
    redis.kill();
    redis.clock().set_unix_millis(1_700_000_777_000).await;
    redis.restart().await;
    assert_eq!(redis.clock().unix_millis().await, 1_700_000_777_000);
}

async fn send(
    server: &MailServer,
    to: &str,
    tls: MailTls,
) -> Result<(), lettre::transport::smtp::Error> {
    let message = Message::builder()
        .from("Service <service@example.org>".parse().expect("an address"))
        .to(to.parse().expect("an address"))
        .subject("Grüße")
        .body("Your code: 123456\n".to_owned())
        .expect("a message");
    let pem = std::fs::read(server.ca_path()).expect("the CA");
    let parameters = TlsParameters::builder("localhost".to_owned())
        .add_root_certificate(Certificate::from_pem(&pem).expect("a certificate"))
        .build()
        .expect("TLS parameters");
    let login = Credentials::new("user".to_owned(), "pass".to_owned());
    let transport =
        AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("localhost").port(server.port());
    let transport = match tls {
        MailTls::Plain => transport,
        MailTls::StartTls => transport.tls(Tls::Required(parameters)).credentials(login),
        MailTls::Implicit => transport.tls(Tls::Wrapper(parameters)).credentials(login),
    };
    transport.build().send(message).await.map(drop)
}

#[tokio::test]
async fn each_mail_is_read_once_and_as_it_arrived() {
    let server = MailServer::start().await;
    send(&server, "alice@example.org", MailTls::Plain).await.expect("to send");
    send(&server, "bob@example.org", MailTls::Plain).await.expect("to send");
    send(&server, "alice@example.org", MailTls::Plain).await.expect("to send");
    let mail = server.wait_for_message("alice@example.org", SOON).await;
    assert_eq!(mail.from, "service@example.org");
    assert_eq!(mail.to, ["alice@example.org"]);
    assert_eq!(mail.subject(), "Grüße");
    assert_eq!(mail.text.trim(), "Your code: 123456");
    assert_eq!(mail.header("from"), Some("Service <service@example.org>"));
    assert!(
        !mail.tls
            && mail.user.is_none()
            && mail.html.is_empty()
            && mail.raw.contains("Subject: =?utf-8?")
    );
    server.wait_for_message("alice@example.org", SOON).await;
    assert_eq!(server.messages().await.len(), 3);
}

#[tokio::test]
async fn a_mail_server_that_requires_tls_and_a_login_accepts_nothing_without() {
    for tls in [MailTls::StartTls, MailTls::Implicit] {
        let server = MailServer::builder().tls(tls).login("user", "pass").start().await;
        let plain = tokio::time::timeout(
            Duration::from_millis(500),
            send(&server, "alice@example.org", MailTls::Plain),
        );
        // A server of implicit TLS may also wait for more bytes if a client speaks without TLS.
        assert!(!matches!(plain.await, Ok(Ok(()))), "{tls:?}");
        send(&server, "alice@example.org", tls).await.expect("to send");
        let mail = server.wait_for_message("alice@example.org", SOON).await;
        assert!(mail.tls);
        assert_eq!(mail.user.as_deref(), Some("user"));
        assert_eq!(server.messages().await.len(), 1);
    }
}

#[tokio::test]
async fn a_mail_server_answers_with_the_fault_that_was_switched_on() {
    let server = MailServer::start().await;
    server.fail(MailStage::Rcpt, "451 4.3.0 later", None).await;
    let error = send(&server, "alice@example.org", MailTls::Plain).await.expect_err("a refusal");
    assert!(error.is_transient(), "{error}");
    server.heal().await;
    send(&server, "alice@example.org", MailTls::Plain).await.expect("to send");
    assert_eq!(server.attempts().await, 2);
}

#[tokio::test]
async fn a_reply_is_returned_with_any_status() {
    let folder = scratch::folder("served");
    std::fs::write(folder.path().join("page.json"), r#"{"a":1}"#).expect("a file");
    let port = ports::free_port();
    let _server = Launch::new(tools::find("tools-python"))
        .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"])
        .arg(folder.path())
        .start();
    let client = ApiClient::new(format!("http://127.0.0.1:{port}/"));
    eventually(SOON, "a reply", async || client.try_raw("GET", "/page.json", &[], "").await).await;
    let reply = client.get("/page.json").await;
    assert_eq!((reply.status, reply.json()["a"].as_u64()), (200, Some(1)));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(client.verify("alice", "123456").await.status, 501);
    assert_eq!(client.generate("a b&c").await.status, 501);
}

#[tokio::test]
async fn a_sidecar_is_alive_and_ends_when_it_is_stopped() {
    let manifests = scratch::folder("manifests");
    let path = manifests.path().to_str().expect("a path of visible characters");
    let sidecar = SidecarProcess::builder().args(["dev", path]).start().await;
    assert_eq!(sidecar.api().get("/").await.json()["status"], "2FA Service is up and running!");
    assert_eq!(sidecar.api().generate("unknown").await.status, 404);
    assert_eq!(sidecar.admin().get("/livez").await.status, 200);
    assert!(sidecar.process().stop().success());
}

#[tokio::test]
async fn an_api_server_comes_back_on_its_port_with_its_data() {
    let server = ApiServer::start().await;
    let _ = server.kubectl(&["create", "namespace", "kept"]);
    let pod = ["run", "web", "--image=web", "--namespace=kept"];
    let _ = server.kubectl(&pod);
    let url = server.url();
    server.kill_apiserver();
    server.restart_apiserver().await;
    assert_eq!(server.url(), url);
    assert_eq!(server.kubectl(&["get", "pods", "--namespace=kept", "--output=name"]), "pod/web\n");
}

#[tokio::test]
async fn an_api_server_with_controllers_collects_garbage_and_knows_service_accounts() {
    let controllers =
        ["garbage-collector-controller", "namespace-controller", "serviceaccount-controller"];
    let server = ApiServer::builder().controllers(controllers).start().await;
    let _ = server.kubectl(&["create", "configmap", "owner"]);
    let uid = server.kubectl(&["get", "configmap", "owner", "--output=jsonpath={.metadata.uid}"]);
    let owned = format!(
        r#"{{"metadata":{{"ownerReferences":[{{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"{uid}"}}]}}}}"#
    );
    let _ = server.kubectl(&["create", "secret", "generic", "owned"]);
    let _ = server.kubectl(&["patch", "secret", "owned", "--type=merge", "--patch", &owned]);
    let _ = server.kubectl(&["delete", "configmap", "owner"]);
    eventually(Duration::from_mins(1), "the owned Secret to be collected", async || {
        server.kubectl(&["get", "secrets", "--output=name"]).is_empty()
    })
    .await;

    let account = server.kubeconfig_for_service_account("default", "default");
    let whoami = |kubeconfig: &Path| {
        let kubeconfig = kubeconfig.to_str().expect("a path of visible characters").to_owned();
        twofactor_tests::process::run(
            tools::find_kubernetes("kubectl"),
            &[
                "--kubeconfig",
                &kubeconfig,
                "auth",
                "whoami",
                "--output=jsonpath={.status.userInfo.username}",
            ],
        )
    };
    assert_eq!(whoami(&account), "system:serviceaccount:default:default");
    assert_eq!(whoami(&server.kubeconfig_for_user("carol", "auditors")), "carol");
}

#[tokio::test]
async fn the_shared_api_server_is_the_same_for_every_test() {
    let first = ApiServer::shared().await;
    let second = ApiServer::shared().await;
    assert_eq!(first.apiserver().id(), second.apiserver().id());
}

#[tokio::test]
async fn the_shared_api_server_serves_tests_of_other_runtimes() {
    let server = ApiServer::shared().await;
    assert!(server.kubectl(&["get", "namespaces", "--output=name"]).contains("namespace/default"));
}
