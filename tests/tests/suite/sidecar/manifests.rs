//! Compares the manifests that `dev` reads with what `kubectl` reads in the same files.

use std::collections::BTreeMap;
use std::fs;

use data_encoding::BASE64;
use serde_json::Value;
use twofactor_api::manifest;
use twofactor_api::user::TwoFactorUserSpec;
use twofactor_tests::process::run;
use twofactor_tests::{scratch, tools};

/// The spec of each user by name, and the keys and values of each Secret.
type Found = (BTreeMap<String, TwoFactorUserSpec>, BTreeMap<String, BTreeMap<String, Vec<u8>>>);

/// Returns what `kubectl` reads, without an API server.
fn by_kubectl(path: &str) -> Found {
    let arguments =
        ["label", "--local", "--kubeconfig=/dev/null", "-o", "json", "-f", path, "read=yes"];
    let printed = run(tools::find_kubernetes("kubectl"), &arguments);
    let (mut users, mut secrets) = Found::default();
    for object in serde_json::Deserializer::from_str(&printed).into_iter::<Value>() {
        let object = object.unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        match object["kind"].as_str().unwrap() {
            "TwoFactorUser" => {
                users.insert(name, serde_json::from_value(object["spec"].clone()).unwrap());
            }
            "Secret" => {
                let members = |field: &str| object[field].as_object().cloned().unwrap_or_default();
                let mut values = BTreeMap::new();
                for (key, value) in members("data") {
                    let text: String =
                        value.as_str().unwrap_or_default().split_whitespace().collect();
                    values.insert(key, BASE64.decode(text.as_bytes()).unwrap());
                }
                for (key, value) in members("stringData") {
                    values.insert(key, value.as_str().unwrap_or_default().as_bytes().to_vec());
                }
                secrets.insert(name, values);
            }
            _ => {}
        }
    }
    (users, secrets)
}

/// Returns what `dev` reads. Values that are not text are left out.
fn by_dev(path: &str) -> Found {
    let manifests = manifest::read(path, &fs::read(path).unwrap());
    assert_eq!(manifests.problems, [], "{path}");
    let users = manifests
        .users
        .into_iter()
        .map(|user| (user.value.metadata.name.unwrap_or_default(), user.value.spec));
    let secrets = manifests.secrets.into_iter().map(|secret| {
        let values = secret.value.values.iter();
        let values =
            values.map(|(key, value)| (key.clone(), value.expose_secret().as_bytes().to_vec()));
        (secret.value.name, values.collect())
    });
    (users.collect(), secrets.collect())
}

const USER: &str = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\n";

/// Files that people and programs write, with the number of users and Secrets in each.
fn files() -> Vec<(&'static str, String, usize, usize)> {
    let user =
        |name: &str, spec: &str| format!("{USER}metadata: {{name: {name}}}\nspec: {{{spec}}}\n");
    let mail = |name: &str| user(name, &format!("email: {name}@example.org"));
    let json = |name: &str| {
        format!(
            r#"{{"apiVersion":"twofactor.fountainai.io/v1alpha1","kind":"TwoFactorUser","metadata":{{"name":"{name}"}},"spec":{{"email":"{name}@example.org"}}}}"#
        )
    };
    vec![
        ("documents.yaml", format!("---\n{}---\n# none\n---\n{}...\n", mail("a"), mail("b")), 2, 0),
        ("marker.yaml", format!("{}--- # the second\n{}", mail("a"), mail("b")), 2, 0),
        ("windows.yaml", format!("\u{feff}{}---\n{}", mail("a"), mail("b")).replace('\n', "\r\n"), 2, 0),
        ("list.yaml", format!("apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n- {}\n- {}\n", json("a"), json("b")), 2, 0),
        ("empty.yaml", format!("apiVersion: v1\nkind: List\nitems: []\n---\n{}", mail("a")), 1, 0),
        ("typed.yaml", "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUserList\nitems:\n- metadata: {name: a}\n  spec: {email: a@b}\n".to_owned(), 1, 0),
        ("secrets.json", r#"{"apiVersion":"v1","kind":"SecretList","items":[{"metadata":{"name":"s"},"data":{"k":"aA=="}}]}"#.to_owned(), 0, 1),
        ("stream.json", format!("{}{}\n\n{}\n", json("a"), json("b"), json("c")), 3, 0),
        ("tabs.json", json("a").replace(',', ",\n\t\t"), 1, 0),
        ("escapes.json", json("a").replace("\"email\"", r#""issuer":"\ud83d\ude00\/\u00fc\"\\","email""#), 1, 0),
        ("mixed.yaml", format!("{}\n---\n{}", json("a"), mail("b")), 2, 0),
    ]
}

#[test]
fn dev_reads_the_same_users_and_secrets_as_kubectl() {
    let folder = scratch::folder("manifests");
    for (name, content, users, secrets) in files() {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let path = path.to_str().unwrap();
        let (ours, theirs) = (by_dev(path), by_kubectl(path));
        assert_eq!((ours.0.len(), ours.1.len()), (users, secrets), "{name}");
        assert_eq!(ours, theirs, "{name}");
    }
}
