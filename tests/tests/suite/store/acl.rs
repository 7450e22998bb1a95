//! Tests that a service's login to Redis allows nothing beyond its purpose. The conformance suite
//! tests that it allows everything that a sidecar does.

use redis::{Client, ErrorKind, RedisResult, ServerErrorKind, Value};
use twofactor_core::decision::Verdict;
use twofactor_core::names::{Pseudonym, RealmNames};
use twofactor_core::user::DeliveryMethod::App;
use twofactor_store::acl::AclError;

use crate::support::world::{World, installation, names};

async fn connect(url: &str) -> redis::aio::MultiplexedConnection {
    Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn call(
    connection: &mut redis::aio::MultiplexedConnection,
    words: &[&str],
) -> RedisResult<Value> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(connection).await
}

fn is_refused(result: &RedisResult<Value>) -> bool {
    let Err(error) = result else { return false };
    // Within a script, Redis wraps the refusal.
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || error.to_string().contains("can't access")
}

#[tokio::test]
async fn a_services_login_may_call_no_other_command() {
    let world = World::in_redis().await;
    let person = world.person("alice", App).await;
    let url = world.service_url(names()).await;
    let mut connection = connect(&url).await;
    let user = names().user(&person.pseudonym);
    assert!(call(&mut connection, &["GET", &user.record]).await.is_ok());
    assert!(call(&mut connection, &["HGETALL", &names().realm_meta()]).await.is_ok());
    for words in [
        &["KEYS", "*"][..],
        &["SCAN", "0"],
        &["DBSIZE"],
        &["FLUSHALL"],
        &["FLUSHDB"],
        &["CONFIG", "GET", "*"],
        &["ACL", "LIST"],
        &["ACL", "WHOAMI"],
        &["SCRIPT", "FLUSH"],
        &["SCRIPT", "KILL"],
        &["SCRIPT", "LOAD", "return 1"],
        &["SCRIPT", "EXISTS", "0"],
        &["EVAL", "while true do end", "0"],
        &["EVAL_RO", "while true do end", "0"],
        &["EVALSHA_RO", "0", "0"],
        &["FUNCTION", "LOAD", "#!lua name=a\nredis.register_function('a', function() end)"],
        &["FCALL", "a", "0"],
        &["FCALL_RO", "a", "0"],
        &["BLPOP", &user.history, "0"],
        &["BLMPOP", "0", "1", &user.history, "LEFT"],
        &["BRPOPLPUSH", &user.history, &user.history, "0"],
        &["XREAD", "BLOCK", "0", "STREAMS", &user.log, "$"],
        &["CLIENT", "PAUSE", "1000"],
        &["APPEND", &user.state, "a"],
        &["SETRANGE", &user.state, "500000000", "a"],
        &["SETBIT", &user.state, "4000000000", "1"],
        &["SORT", &user.history],
        &["SHUTDOWN"],
        &["MONITOR"],
        &["CLIENT", "LIST"],
        &["CLIENT", "KILL", "ID", "1"],
        &["REPLICAOF", "NO", "ONE"],
        &["SUBSCRIBE", "x"],
        &["PUBLISH", "x", "y"],
        &["SELECT", "1"],
        &["DEL", &user.state],
        &["UNLINK", &user.state],
        &["RENAME", &user.state, &user.otp],
        &["DUMP", &user.record],
        &["SET", &user.record, "forged"],
        &["COPY", &user.record, &user.otp],
        &["EXPIRE", &user.state, "1"],
        &["XTRIM", &user.log, "MAXLEN", "0"],
        &["XDEL", &user.log, "1-1"],
        &["XRANGE", &user.log, "-", "+"],
        &["LRANGE", &user.history, "0", "-1"],
        &["LTRIM", &user.history, "1", "0"],
        &["LSET", &user.history, "0", "forged"],
    ] {
        let result = call(&mut connection, words).await;
        assert!(is_refused(&result), "{words:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_services_login_reaches_no_other_key_and_writes_no_record_even_by_a_script() {
    let world = World::in_redis().await;
    let person = world.person("alice", App).await;
    let mut connection = connect(&world.service_url(names()).await).await;
    let user = names().user(&person.pseudonym);
    let other = RealmNames::new(&installation(), &"realm-under-test-2".parse().unwrap());
    let foreign =
        RealmNames::new(&"installation".parse().unwrap(), &"realm-under-test".parse().unwrap());
    let others = other.user(&Pseudonym::from_bytes([7; 16]));
    for key in [
        &other.realm_record(),
        &other.realm_meta(),
        &other.realm_deliveries(),
        &others.record,
        &others.state,
        &others.history,
        &others.log,
        &foreign.realm_record(),
        "something",
    ] {
        for words in [
            &["GET", key][..],
            &["HGETALL", key],
            &["EXISTS", key],
            &["HSET", key, "a", "b"],
            &["XADD", key, "*", "a", "b"],
            &["RPUSH", key, "a"],
        ] {
            let result = call(&mut connection, words).await;
            assert!(is_refused(&result), "{words:?}: {result:?}");
        }
    }
    // The same within a script, if another program has loaded one that calls any command.
    let mut administrator = world.redis().connect().await;
    let script = "return redis.call(ARGV[1], ARGV[2], unpack(ARGV, 3))";
    let hash: String =
        redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async(&mut administrator).await.unwrap();
    for words in [
        &["SET", &user.record, "forged"][..],
        &["HSET", &names().realm_meta(), "complete", "1"],
        &["HSET", &user.record, "a", "b"],
        &["XADD", &user.record, "*", "a", "b"],
        &["XADD", &names().realm_meta(), "*", "a", "b"],
        &["RPUSH", &user.record, "a"],
        &["HGETALL", &others.state],
        &["DEL", &user.state],
    ] {
        let call_of: Vec<&str> = [&["EVALSHA", &hash, "0"], words].concat();
        let result = call(&mut connection, &call_of).await;
        assert!(result.is_err(), "{words:?}: {result:?}");
    }
    assert_eq!(world.publisher.current(person.pseudonym).await.unwrap().unwrap(), person.record);
}

#[tokio::test]
async fn a_removed_login_loses_its_connections_and_is_restored_unchanged() {
    let world = World::in_redis().await;
    let admin = world.publisher.store().redis().unwrap().clone();
    let url = world.service_url(names()).await;
    let mut connection = connect(&url).await;
    let name = admin
        .acl_users()
        .await
        .unwrap()
        .everywhere
        .into_iter()
        .find(|name| name != "default")
        .unwrap();
    assert_eq!(
        RealmNames::realm_of_login(&installation(), &name),
        Some("realm-under-test".parse().unwrap())
    );
    admin.acl_delete(std::slice::from_ref(&name)).await.unwrap();
    assert!(call(&mut connection, &["GET", &names().realm_record()]).await.is_err());
    assert!(Client::open(url.as_str()).unwrap().get_multiplexed_async_connection().await.is_err());
    assert_eq!(admin.acl_users().await.unwrap().anywhere, ["default".to_owned()].into());
    // A service cannot allow its own or another namespace.
    let service = world.service_store(names()).await;
    assert!(matches!(service.acl_users().await, Err(AclError::NotPermitted)));
    assert!(matches!(service.acl_delete(&[name]).await, Err(AclError::NotPermitted)));
}

#[tokio::test]
async fn a_login_may_select_the_database_of_its_url() {
    let world = World::in_redis().await;
    let url = world.redis().url().replace("/0", "/3");
    let store = twofactor_store::redis::RedisStore::new(
        &url,
        names(),
        twofactor_store::clock::Clock::System,
    )
    .unwrap();
    let user = twofactor_store::acl::AclUser {
        name: names().login(&[1; 16]),
        // Hash of the empty password.
        password_hash: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            .to_owned(),
        realm: names(),
    };
    store.acl_set(&user, twofactor_store::acl::Separation::ReadAndWrite).await.unwrap();
    let mut rules: Vec<Value> = redis::cmd("ACL")
        .arg("GETUSER")
        .arg(&user.name)
        .query_async(&mut world.redis().connect().await)
        .await
        .unwrap();
    let commands = format!("{:?}", rules.remove(5));
    assert!(commands.contains("+select") && commands.contains("-@all"), "{commands}");
}

#[tokio::test]
async fn a_login_of_the_previous_release_decides_without_histories_until_it_may_write_them() {
    let world = World::in_redis_as_a_service().await;
    let carol = world.person("carol", App).await;
    let admin = world.publisher.store().redis().unwrap().clone();
    let users = admin.acl_users().await.unwrap().everywhere;
    let name = users.into_iter().find(|name| name != "default").unwrap();
    let allow = async |histories: bool| {
        let mut rules = vec!["ACL".to_owned(), "SETUSER".to_owned(), name.clone()];
        rules.push("resetkeys".to_owned());
        rules.extend(names().keys_to_read().iter().map(|pattern| format!("%R~{pattern}")));
        let written = names().keys_to_write();
        let written = written.iter().filter(|pattern| histories || !pattern.ends_with(":hist"));
        rules.extend(written.map(|pattern| format!("~{pattern}")));
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let _: () = world.redis().ask(&rules).await;
    };
    let history = names().user(&carol.pseudonym).history;
    let entries = async || world.redis().ask::<u64>(&["LLEN", &history]).await;
    let accepted = async || {
        let code = carol.code_at(world.now(), 0);
        assert_eq!(world.verify(&carol, "kms", &code).await.unwrap(), Verdict::Accepted);
    };
    allow(false).await;
    accepted().await;
    assert_eq!(entries().await, 0);
    allow(true).await;
    world.set_time(world.now().millis() + 61_000).await;
    accepted().await;
    assert_eq!(entries().await, 1);
    allow(false).await;
    world.set_time(world.now().millis() + 30_000).await;
    accepted().await;
    assert_eq!(entries().await, 1);
}
