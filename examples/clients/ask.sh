#!/usr/bin/env bash
# Reveals a key after a second factor, with bash and curl.
#
#   examples/clients/ask.sh alice
set -euo pipefail

username=${1:-alice}

# ask PATH BODY: fails unless the sidecar answers with status 200. Never through a proxy, because
# the sidecar is in this pod.
ask() {
  curl --noproxy '*' --max-time "${TWOFACTOR_TIMEOUT:-15}" -fsS \
    "${TWOFACTOR_URL:-http://127.0.0.1:8004}$1" -H 'Content-Type: application/json' -d "$2"
}

# A refusal is not the end: an earlier code may still be valid, or the user may have an
# authenticator app.
ask /auth/generate '{"username":"'"$username"'"}' >/dev/null || echo 'No new code was sent.' >&2
read -rp 'Code: ' code
if [[ $code =~ ^[0-9]{6,8}$ ]] &&
  ask /auth/verify '{"username":"'"$username"'","otp_code":"'"$code"'"}' >/dev/null; then
  echo 'here is your key'
else
  echo 'no key for you' >&2
  exit 1
fi
