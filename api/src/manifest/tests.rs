use super::*;

const ALICE: &str = "\
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata:
  name: alice
  namespace: people
spec:
  email: alice@example.org
";

const SECRET: &str = "\
apiVersion: v1
kind: Secret
metadata:
  name: imported
  namespace: people
type: Opaque
stringData:
  secret: GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ
data:
  other: |
    aHVudGVy
    Mg==
";

fn read_text(text: &str) -> Manifests {
    read("users.yaml", text.as_bytes())
}

fn problems(text: &str) -> Vec<String> {
    let manifests = read_text(text);
    let served = manifests.users.len() + manifests.secrets.len();
    assert!(served == 0 || manifests.problems.is_empty(), "a document with a problem is left out");
    manifests.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_user_is_read_with_the_defaults_of_the_api_server() {
    let manifests = read_text(ALICE);
    assert_eq!(manifests.problems, []);
    let user = &manifests.users[0];
    assert_eq!((user.file.as_str(), user.line), ("users.yaml", 1));
    assert_eq!(user.value.metadata.name.as_deref(), Some("alice"));
    assert_eq!(user.value.metadata.namespace.as_deref(), Some("people"));
    assert!(user.value.spec.enabled);
    assert_eq!(user.validate().unwrap().username.as_str(), "alice");
}

#[test]
fn a_secret_is_read_and_never_printed() {
    let manifests = read_text(SECRET);
    assert_eq!(manifests.problems, []);
    let secret = manifests.secret(Some("people"), "imported").unwrap();
    assert_eq!(secret.values["secret"].expose_secret(), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    assert_eq!(secret.values["other"].expose_secret(), "hunter2");
    let printed = format!("{manifests:?}");
    assert!(
        !printed.contains("GEZDG") && !printed.contains("hunter2") && !printed.contains("aHVudGVy"),
        "{printed}"
    );
    assert!(manifests.secret(None, "imported").is_none());
    assert!(manifests.secret(Some("people"), "other").is_none());
}

#[test]
fn string_data_wins_over_data() {
    let manifests = read_text(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {k: clear}\ndata: {k: aHVudGVyMg==}\n",
    );
    assert_eq!(manifests.secret(None, "a").unwrap().values["k"].expose_secret(), "clear");
}

#[test]
fn problems_of_a_secret_name_the_key_and_hide_the_value() {
    let head = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\n";
    for (rest, expected) in [
        (
            "data:\n  k: hunter2!\n",
            "users.yaml:6: data.k: is not base64: text in clear belongs under stringData",
        ),
        (
            "stringData:\n  a: x\n  k: 12345678\n",
            "users.yaml:7: stringData.k: must be text: put it in quotes",
        ),
        ("stringData:\n  k:\n    hunter2: hunter2\n", "users.yaml:6: stringData.k: must be text"),
        ("stringData: hunter2\n", "users.yaml:5: stringData: must be a mapping"),
        (
            "stringdata:\n  k: hunter2\n",
            "users.yaml:5: stringdata: is not a known field; known here are apiVersion, data, immutable, kind, \
             metadata, stringData and type",
        ),
    ] {
        assert_eq!(problems(&format!("{head}{rest}")), [expected]);
    }
}

#[test]
fn every_unknown_field_and_wrong_type_is_named_with_its_line() {
    let text = "\
apiVersion: twofactor.fountainai.io/v1alpha1
kind: TwoFactorUser
metadata:
  name: alice
spec:
  emial: alice@example.org
  enabled: 'true'
  phoneNumber: +4930123456
  deliveryMethod: fax
  totp:
    digits: six
    period: 30
    skew: 99999999999
  secretRef: alice
  issuer:
status: {}
extra: 1
";
    let expected = [
        "users.yaml:17: extra: is not a known field; known here are apiVersion, kind, metadata, spec and status",
        "users.yaml:6: spec.emial: is not a known field; known here are deliveryMethod, email, enabled, issuer, \
         locale, phoneNumber, secretRef, totp and username",
        "users.yaml:7: spec.enabled: must be true or false",
        "users.yaml:8: spec.phoneNumber: must be text: put it in quotes",
        "users.yaml:9: spec.deliveryMethod: must be email, sms, webhook or app",
        "users.yaml:11: spec.totp.digits: must be a whole number",
        "users.yaml:12: spec.totp.period: is not a known field; known here are algorithm, digits, periodSeconds and skew",
        "users.yaml:13: spec.totp.skew: must be a whole number",
        "users.yaml:14: spec.secretRef: must be a mapping",
    ];
    assert_eq!(problems(text), expected);
}

#[test]
fn a_field_without_a_value_is_a_field_that_is_not_written() {
    let manifests =
        read_text(&format!("{ALICE}  enabled:\n  totp: ~\n  username: null\nstatus:\n"));
    assert_eq!(manifests.problems, []);
    assert!(manifests.users[0].value.spec.enabled);
}

#[test]
fn missing_fields_are_named() {
    let header = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\n";
    for (text, expected) in [
        (
            "spec: {}\n".to_owned(),
            &["users.yaml:1: apiVersion: is missing", "users.yaml:1: kind: is missing"][..],
        ),
        ("kind: Secret\n".to_owned(), &["users.yaml:1: apiVersion: is missing"]),
        ("apiVersion: v1\nkind: 1\n".to_owned(), &["users.yaml:2: kind: must be text"]),
        (
            header.to_owned(),
            &["users.yaml:1: metadata: is missing", "users.yaml:1: spec: is missing"],
        ),
        (
            format!("{header}metadata:\n  namespace: a\nspec: {{}}\n"),
            &["users.yaml:4: metadata.name: is missing"],
        ),
        (
            format!("{header}metadata:\n  name: 1\nspec: {{}}\n"),
            &["users.yaml:4: metadata.name: must be text: put it in quotes"],
        ),
        (
            format!("{header}metadata:\n  name: ''\nspec: {{}}\n"),
            &["users.yaml:4: metadata.name: is empty"],
        ),
        (
            format!("{header}metadata: alice\nspec: {{}}\n"),
            &["users.yaml:3: metadata: must be a mapping"],
        ),
        (format!("{header}metadata: {{name: a}}\nspec:\n"), &["users.yaml:1: spec: is missing"]),
        (
            format!("{header}metadata: {{name: a}}\nspec: {{secretRef: {{}}}}\n"),
            &["users.yaml:4: spec.secretRef.name: is missing"],
        ),
    ] {
        assert_eq!(problems(&text), expected, "{text}");
    }
}

#[test]
fn metadata_is_checked_and_never_quoted() {
    let header = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\n";
    for (rest, expected) in [
        ("  annotations: hunter2\n", "users.yaml:5: metadata.annotations: must be a mapping"),
        (
            "  labels:\n    a: 1\n",
            "users.yaml:6: metadata.labels.a: must be text: put it in quotes",
        ),
        ("  ownerReferences: hunter2\n", "users.yaml:4: metadata: cannot be read"),
    ] {
        assert_eq!(problems(&format!("{header}{rest}")), [expected]);
    }
    let unknown = problems(&format!("{header}  namspace: hunter2\n")).remove(0);
    assert!(
        unknown.starts_with("users.yaml:5: metadata.namspace: is not a known field"),
        "{unknown}"
    );
    let exported = "  creationTimestamp: null\n  uid: x\n  labels:\n  annotations: {a: }\n  resourceVersion: '1'\n";
    assert_eq!(problems(&format!("{header}{exported}")), [""; 0]);
}

#[test]
fn documents_that_are_something_else_are_named() {
    for (text, expected) in [
        (
            "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUsr\n",
            "users.yaml:2: kind: is not known; known here are TwoFactorUser, TwoFactorRealm, Secret and List",
        ),
        (
            "apiVersion: v1\nkind: secret\n",
            "users.yaml:2: kind: is not known; known here are TwoFactorUser, TwoFactorRealm, Secret and List",
        ),
        (
            "apiVersion: example.org/v1\nkind: TwoFactorUser\n",
            "users.yaml:1: apiVersion: must be twofactor.fountainai.io/v1alpha1 for kind TwoFactorUser",
        ),
        (
            "apiVersion: twofactor.fountainai.io/v2\nkind: TwoFactorUser\n",
            "users.yaml:1: apiVersion: must be twofactor.fountainai.io/v1alpha1 for kind TwoFactorUser",
        ),
        ("apiVersion: v2\nkind: Secret\n", "users.yaml:1: apiVersion: must be v1 for kind Secret"),
        (
            "- 1\n",
            "users.yaml:1: the document: is no manifest: a mapping with apiVersion and kind is needed",
        ),
        (
            "alice\n",
            "users.yaml:1: the document: is no manifest: a mapping with apiVersion and kind is needed",
        ),
    ] {
        assert_eq!(problems(text), [expected], "{text}");
    }
}

#[test]
fn a_broken_document_leaves_the_others_served_with_the_right_lines() {
    let broken = "apiVersion: v1\nkind: Secret\nstringData:\n  secret: \"hunter2\n";
    let manifests = read_text(&format!("# users\n---\n{broken}---\n{ALICE}---\n{SECRET}"));
    assert_eq!(manifests.problems.len(), 1);
    let problem = &manifests.problems[0];
    assert!((3..=7).contains(&problem.line), "{problem}");
    assert!(problem.field.is_none() && !problem.to_string().contains("hunter2"), "{problem}");
    let user = &manifests.users[0];
    assert_eq!(
        (user.line, user.line_of("spec.email"), user.line_of("spec.totp.digits")),
        (8, 14, 13)
    );
    assert_eq!((user.line_of("metadata.name"), user.line_of("elsewhere")), (11, 8));
    assert_eq!(manifests.secrets[0].line, 16);
}

#[test]
fn validation_errors_have_a_line() {
    let text = ALICE.replace("alice@example.org", "alice@")
        + "  totp:\n    digits: 9\n  deliveryMethod: sms\n";
    let manifests = read_text(&text);
    assert_eq!(manifests.problems, []);
    let problems = manifests.users[0].validate().unwrap_err();
    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "users.yaml:7: spec.email: is not an email address: write it like name@example.org",
            "users.yaml:6: spec.phoneNumber: is required if deliveryMethod is sms",
            "users.yaml:9: spec.totp.digits: must be 6 to 8, not 9",
        ]
    );
}

#[test]
fn lists_are_read_item_by_item() {
    let item = |text: &str| text.replace('\n', "\n  ").trim_end().to_owned();
    let text = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}\n- kind: Pod\n  apiVersion: v1\n- {}\n",
        item(ALICE),
        item(SECRET)
    );
    let manifests = read_text(&text);
    assert_eq!((manifests.users.len(), manifests.secrets.len()), (1, 1));
    assert_eq!((manifests.users[0].line, manifests.users[0].line_of("spec.email")), (4, 10));
    assert_eq!((manifests.problems.len(), manifests.left_out.len()), (0, 1));
    let left_out = LeftOut { file: "users.yaml".to_owned(), line: 11, kind: "Pod".to_owned() };
    assert_eq!(manifests.left_out[0], left_out);
    for (text, expected) in [
        ("apiVersion: v1\nkind: List\nitems: 1\n", "users.yaml:3: items: must be a list"),
        ("apiVersion: v1\nkind: List\n", "users.yaml:1: items: is missing"),
        (
            "apiVersion: v1\nkind: SecretList\nitems: [alice]\n",
            "users.yaml:3: the document: is no manifest: a mapping with apiVersion and kind is needed",
        ),
    ] {
        assert_eq!(problems(text), [expected]);
    }
    for empty in ["[]", "", "null"] {
        assert_eq!(problems(&format!("apiVersion: v1\nkind: List\nitems: {empty}\n")), [""; 0]);
    }
}

#[test]
fn items_of_a_list_of_one_kind_need_no_kind_of_their_own() {
    let bare = |text: &str| {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("apiVersion") && !line.starts_with("kind"));
        lines.collect::<Vec<_>>().join("\n  ")
    };
    let users = format!(
        "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUserList\nmetadata: {{continue: ''}}\nitems:\n- {}\n",
        bare(ALICE)
    );
    let secrets = format!("apiVersion: v1\nkind: SecretList\nitems:\n- {}\n", bare(SECRET));
    let nested = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}\n",
        users.trim_end().replace('\n', "\n  ")
    );
    for (text, counts) in [(users, (1, 0)), (secrets, (0, 1)), (nested, (1, 0))] {
        let manifests = read_text(&text);
        assert_eq!(manifests.problems, [], "{text}");
        assert_eq!((manifests.users.len(), manifests.secrets.len()), counts, "{text}");
    }
    let others = "apiVersion: v1\nkind: ConfigMapList\nitems:\n- metadata: {name: a}\n";
    assert_eq!((problems(others), read_text(others).left_out.len()), (Vec::new(), 1));
}

#[test]
fn a_document_of_another_kind_hides_no_user() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: people}\n";
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nspec: {template: {}}\n";
    let kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n";
    let text = [namespace, ALICE, deployment, kustomization].join("---\n");
    let manifests = read_text(&text);
    assert_eq!((manifests.problems.len(), manifests.users.len()), (0, 1));
    let kinds: Vec<_> = manifests.left_out.iter().map(|left| left.kind.as_str()).collect();
    assert_eq!(kinds, ["Namespace", "Deployment", "Kustomization"]);
}

#[test]
fn a_secret_with_keys_that_are_not_text_keeps_the_others() {
    // A picture, a key that is in both fields, and one without a value.
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  qr.png: iVBORw0KGgoAAAANSUhEUv/+\n  \
                both: /w==\n  none:\n  secret: aHVudGVyMg==\nstringData: {both: clear, empty: }\n";
    let manifests = read_text(text);
    assert_eq!(manifests.problems, []);
    let secret = manifests.secret(None, "a").unwrap();
    assert_eq!(secret.binary, BTreeSet::from(["qr.png".to_owned()]));
    let values = secret.values.iter().map(|(key, value)| (key.as_str(), value.expose_secret()));
    let expected = [("both", "clear"), ("empty", ""), ("none", ""), ("secret", "hunter2")];
    assert_eq!(values.collect::<Vec<_>>(), expected);
}

#[test]
fn several_json_documents_are_read_with_or_without_lines_between_them() {
    let user = |name: &str| {
        format!(
            "{{\n\t\"apiVersion\": \"twofactor.fountainai.io/v1alpha1\",\n\t\"kind\": \"TwoFactorUser\",\n\t\"metadata\": \
             {{\"name\": \"{name}\"}},\n\t\"spec\": {{\"email\": \"{name}@example.org\", \"issuer\": \"F\\ud83d\\ude00\\/\\t\"}}\n}}"
        )
    };
    let (one, two) = (user("alice"), user("bob"));
    for between in ["", "\n", "\r\n\r\n", " ", "\n---\n"] {
        let manifests = read_text(&format!("{one}{between}{two}\n"));
        assert_eq!(manifests.problems, [], "{between:?}");
        let names: Vec<_> =
            manifests.users.iter().map(|user| user.value.metadata.name.clone()).collect();
        assert_eq!(names, [Some("alice".to_owned()), Some("bob".to_owned())], "{between:?}");
        let lines = between.matches('\n').count();
        assert_eq!(manifests.users[1].line_of("spec.email"), 10 + lines, "{between:?}");
        assert_eq!(manifests.users[1].value.spec.issuer.as_deref(), Some("F\u{1f600}/\t"));
    }
    // What comes after a complete document is read on its own.
    let manifests = read_text(&format!("{one}\n{{\"kind\": [}}\n---\n{two}"));
    assert_eq!(
        (manifests.users.len(), manifests.problems.len()),
        (2, 1),
        "{:?}",
        manifests.problems
    );
    assert_eq!(manifests.problems[0].line, 7);
    assert_eq!(problems(&format!("{one}\n# a comment\n")), [""; 0]);
    // YAML may begin like JSON.
    let flow = "{apiVersion: v1, kind: Secret, metadata: {name: a}}\n";
    assert_eq!((read_text(flow).secrets.len(), problems(flow)), (1, Vec::new()));
}

#[test]
fn json_windows_line_ends_and_a_byte_order_mark_are_read() {
    let json = serde_json::to_string_pretty(&read_text(ALICE).users[0].value).unwrap();
    for text in [
        json,
        ALICE.replace('\n', "\r\n"),
        format!("\u{feff}{ALICE}"),
        format!("---\n{ALICE}...\n"),
    ] {
        let manifests = read_text(&text);
        assert_eq!(manifests.problems, [], "{text}");
        assert_eq!(manifests.users[0].value.spec.email.as_deref(), Some("alice@example.org"));
    }
}

/// What `kubectl label --local -o json` prints for the same text.
#[test]
fn scalars_and_references_mean_what_they_mean_to_kubectl() {
    let user = |name: &str, spec: &str| {
        ALICE.replace("alice\n", &format!("{name}\n")).replace("email: alice@example.org", spec)
    };
    let spec = |text: &str| {
        let manifests = read_text(&user("a", &format!("email: a@example.org\n  {text}")));
        assert_eq!(manifests.problems, [], "{text}");
        manifests.users[0].value.spec.clone()
    };
    for (text, enabled) in
        [("yes", true), ("On", true), ("y", true), ("off", false), ("NO", false), ("'true'", true)]
    {
        let text = format!("enabled: {}", text.trim_matches('\''));
        assert_eq!(spec(&text).enabled, enabled, "{text}");
    }
    for (text, digits) in [("010", 8), ("0o10", 8), ("0x8", 8), ("+8", 8), ("8e0", 8), ("6", 6)] {
        assert_eq!(spec(&format!("totp: {{digits: {text}}}")).totp.digits, digits, "{text}");
    }
    // A date is text, and a word that means a boolean is not.
    assert_eq!(spec("username: 2026-11-22").username.as_deref(), Some("2026-11-22"));
    assert_eq!(spec("username: !!str 123").username.as_deref(), Some("123"));
    assert_eq!(spec("username: Null").username, None);
    let norway = format!("{ALICE}  username: no\n");
    assert_eq!(problems(&norway), ["users.yaml:8: spec.username: must be text: put it in quotes"]);
    // Anchors, aliases and merge keys.
    let list = "apiVersion: v1\nkind: List\nitems:\n- &one\n  apiVersion: twofactor.fountainai.io/v1alpha1\n  kind: \
                TwoFactorUser\n  metadata: {name: a}\n  spec: &spec {email: a@example.org, totp: {digits: 8}}\n- <<: *one\n  \
                metadata: {name: b}\n  spec: {<<: *spec, email: b@example.org}\n";
    let manifests = read_text(list);
    assert_eq!(manifests.problems, []);
    let second = &manifests.users[1].value;
    assert_eq!(second.metadata.name.as_deref(), Some("b"));
    assert_eq!((second.spec.email.as_deref(), second.spec.totp.digits), (Some("b@example.org"), 8));
}

#[test]
fn tabs_as_indentation_are_a_problem_with_its_line() {
    let manifests = read_text(&format!("{}---\n{ALICE}", ALICE.replace("  email", "\temail")));
    assert_eq!((manifests.users.len(), manifests.problems.len()), (1, 1));
    assert!((6..=7).contains(&manifests.problems[0].line), "{}", manifests.problems[0]);
}

#[test]
fn a_file_that_is_not_text_is_a_problem() {
    let manifests = read("users.yaml", b"\x89PNG\r\n\x1a\n\0");
    assert_eq!(manifests.problems[0].to_string(), "users.yaml:1: the document: is not UTF-8");
}

#[test]
fn files_add_up() {
    let mut manifests = read("a.yaml", ALICE.as_bytes());
    manifests.append(read("b.yaml", format!("{SECRET}---\nx\n").as_bytes()));
    assert_eq!(
        (manifests.users.len(), manifests.secrets.len(), manifests.problems.len()),
        (1, 1, 1)
    );
    assert_eq!(
        (manifests.users[0].file.as_str(), manifests.problems[0].file.as_str()),
        ("a.yaml", "b.yaml")
    );
}

#[test]
fn a_status_is_the_operators_and_not_read() {
    let manifests = read_text(&format!("{ALICE}status:\n  secretName: 1\n  fromTheFuture: true\n"));
    assert_eq!(manifests.problems, []);
    assert_eq!(manifests.users[0].value.status, None);
}

#[test]
fn the_examples_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let example = |name: &str| read(name, &std::fs::read(folder.join(name)).unwrap());
    let mut manifests = example("users.yaml");
    assert_eq!(manifests.users.len(), 3);
    manifests.append(example("imported-seed.yaml"));
    manifests.append(example("german.yaml"));
    assert_eq!(manifests.problems, []);
    for user in &manifests.users {
        assert_eq!(user.value.metadata.namespace.as_deref(), Some("people"));
        user.validate().unwrap();
    }
    let importing =
        manifests.users.iter().find_map(|user| user.value.spec.secret_ref.as_ref()).unwrap();
    let secret = manifests.secret(Some("people"), &importing.name).unwrap();
    twofactor_core::seed::Seed::from_base32(secret.values[&importing.key].expose_secret()).unwrap();
}

#[test]
fn a_realm_among_the_users_is_ignored() {
    let found = read(
        "users.yaml",
        b"apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorRealm\nmetadata: {name: default}\nspec: {}\n",
    );
    assert!(found.problems.is_empty() && found.users.is_empty(), "{:?}", found.problems);
}
