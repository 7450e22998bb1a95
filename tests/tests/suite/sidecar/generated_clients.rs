//! Tests that clients can be generated from the description of the API: each is generated,
//! compiled, and verifies a code.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use tokio::sync::Mutex;
use twofactor_tests::process::try_run;
use twofactor_tests::sidecar::SidecarProcess;
use twofactor_tests::{scratch, tools};

const USER: &str = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\nmetadata: {name: alice}\n\
                    spec: {email: alice@example.org}\n";

/// Generators and compilers use every processor, so only one of them runs at a time, and at a low
/// priority: other tests check answers that are due within a second.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Generates a client, lets it request and verify a code, and checks what it prints.
async fn verifies(generator: &str) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = scratch::folder("client");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("users.yaml"), USER).unwrap();
    let users = path("users.yaml").to_str().unwrap().to_owned();
    let sidecar = SidecarProcess::builder().args(["dev", &users]).start().await;
    let api = sidecar.api();
    fs::write(path("openapi.json"), api.get("/openapi.json").await.body).unwrap();
    let script = tools::file("clients/verify").to_str().unwrap().to_owned();
    let url = api.base_url().to_owned();
    let arguments =
        [path("openapi.json"), path("generated")].map(|path| path.to_str().unwrap().to_owned());
    let generator = generator.to_owned();
    let run = move || {
        let [description, folder] = &arguments;
        try_run("nice", &["-n", "15", &script, &generator, description, folder, &url, "alice"])
    };
    let printed =
        tokio::task::spawn_blocking(run).await.unwrap().unwrap_or_else(|error| panic!("{error}"));
    let lines: Vec<_> = printed.lines().collect();
    let [accepted, refused] = lines[..] else { panic!("{printed}") };
    assert!(accepted.eq_ignore_ascii_case("true"), "{printed}");
    assert_eq!(refused, "400 OTP already used or no matching record.");
}

macro_rules! generators {
    ($($test:ident: $generator:literal;)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                verifies($generator).await;
            }
        )*
    };
}

generators! {
    a_python_client_of_openapi_generator_verifies_a_code: "openapi-generator-python";
    a_go_client_of_openapi_generator_verifies_a_code: "openapi-generator-go";
    a_typescript_client_of_openapi_generator_verifies_a_code: "openapi-generator-typescript";
    a_java_client_of_openapi_generator_verifies_a_code: "openapi-generator-java";
    a_client_of_openapi_typescript_verifies_a_code: "openapi-typescript";
    a_client_of_oapi_codegen_verifies_a_code: "oapi-codegen";
    a_client_of_openapi_python_client_verifies_a_code: "openapi-python-client";
}

/// Calls `look` with every object of a JSON value.
fn objects(value: &Value, look: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(members) => {
            look(members);
            members.values().for_each(|value| objects(value, look));
        }
        Value::Array(items) => items.iter().for_each(|value| objects(value, look)),
        _ => {}
    }
}

#[tokio::test]
async fn the_description_has_only_what_generators_can_express() {
    let users = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let sidecar = SidecarProcess::builder().args(["dev", users]).start().await;
    let document = sidecar.api().get("/openapi.json").await.json();
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || " -".contains(c))
    };
    // Tags become classes, schemas types, and operations functions.
    let declared: BTreeSet<_> = document["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| tag["name"].as_str().unwrap())
        .collect();
    let (mut operations, mut tags) = (Vec::new(), BTreeSet::new());
    for operation in document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
    {
        operations.push(operation["operationId"].as_str().unwrap().to_owned());
        tags.extend(operation["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap()));
    }
    assert_eq!(tags, declared);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let names =
        operations.iter().chain(schemas.keys()).map(String::as_str).chain(tags.iter().copied());
    for name in names.clone() {
        assert!(is_name(name), "{name}");
    }
    let folded: BTreeSet<_> = names.clone().map(str::to_ascii_lowercase).collect();
    assert_eq!(folded.len(), names.count(), "two names differ in case only");
    // No type is null or one of several, which becomes a type that does not compile or says
    // nothing.
    objects(&document, &mut |object| {
        for word in ["oneOf", "anyOf", "allOf", "not"] {
            assert!(!object.contains_key(word), "{object:?}");
        }
        assert!(
            object.get("type").is_none_or(|kind| !kind.is_array() && kind != "null"),
            "{object:?}"
        );
    });
    let body = |path: &str| document["paths"][path]["post"]["requestBody"].clone();
    for (path, required, schema) in
        [("/auth/generate", false, "GenerateRequest"), ("/auth/verify", true, "VerifyRequest")]
    {
        assert_eq!(body(path)["required"], required, "{path}");
        let schema = serde_json::json!({ "$ref": format!("#/components/schemas/{schema}") });
        assert_eq!(body(path)["content"]["application/json"]["schema"], schema, "{path}");
    }
}
