//! Tests a pod that has IPv6 only: a network namespace without any IPv4 address, not even
//! 127.0.0.1.

use std::fs;

use twofactor_tests::process::try_run;
use twofactor_tests::{scratch, tools};

/// Runs in the network namespace. Ends with an error at the first command that fails.
const SCRIPT: &str = r#"
set -eu
cd "$1"; redis=$2; sidecar=$3
ip link set lo up
ip -4 address flush dev lo
test -z "$(ip -4 -o address show)" || { echo "there is an IPv4 address"; exit 1; }
"$redis" --bind ::1 --port 6379 --save '' --dir "$1" > redis.log 2>&1 & redis=$!
export TWOFACTOR_ADMIN_LISTEN='*:18004'
REDIS_URL='redis://[::1]:6379' "$sidecar" dev "$1/users" > sidecar.log 2>&1 &
sidecar_id=$!
trap 'kill $redis $sidecar_id || true; wait || true; cat sidecar.log' EXIT
ask() { curl --silent --show-error --max-time 20 "$@"; echo; }
ask --globoff --retry 60 --retry-delay 1 --retry-connrefused --retry-max-time 60 --fail 'http://[::1]:18004/livez'
ask --retry 60 --retry-delay 1 --retry-all-errors --retry-max-time 60 --fail \
  --request POST 'http://localhost:8004/auth/generate?username=alice' > answer
code=$(sed -n 's/.*"otp_code":"\([0-9]*\)".*/\1/p' answer)
for attempt in first second; do
  ask --json "{\"username\":\"alice\",\"otp_code\":\"$code\"}" http://localhost:8004/auth/verify
done
ask --globoff --fail 'http://[::1]:18004/metrics' > metrics
grep --quiet '^twofactor_' metrics && echo 'metrics are served'
"$sidecar" probe livez && echo "the probe passes"
"#;

const USER: &str = "apiVersion: twofactor.fountainai.io/v1alpha1\nkind: TwoFactorUser\n\
                    metadata: { name: alice }\nspec: { email: alice@example.org }\n";

#[test]
fn a_service_with_ipv6_only_verifies_a_code_through_localhost() {
    let folder = scratch::folder("ipv6");
    let users = folder.path().join("users");
    fs::create_dir(&users).unwrap();
    fs::write(users.join("alice.yaml"), USER).unwrap();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (redis, sidecar) =
        (text(&tools::find("redis-server")), text(&tools::project_binary("twofactor-sidecar")));
    let arguments = ["--net", "sh", "-c", SCRIPT, "sh", &text(folder.path()), &redis, &sidecar];
    let output = try_run("unshare", &arguments).unwrap_or_else(|error| panic!("{error}"));
    assert!(output.contains(r#"{"success":true}"#), "{output}");
    for expected in ["used-code", "metrics are served", "the probe passes"] {
        assert!(output.contains(expected), "{expected} in {output}");
    }
}
