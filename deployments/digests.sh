#!/usr/bin/env bash
# Writes the digest that each image of others has today behind its name, `postgres:15-bookworm@sha256:…`: what is pulled is then what was
# looked at, whoever moves the tag. `make digests` calls it; look at the difference and commit it. Again later: newer digests, for security
# fixes. It changes all files or none.
# REGISTRY  where the images are (default: Docker Hub); needs curl
set -euo pipefail
cd "$(dirname "$0")"
registry=${REGISTRY:-https://registry-1.docker.io}
files=(Dockerfile compose.yaml kubernetes/postgres.yaml)
answer=$(mktemp -d)
trap 'rm -rf "$answer"' EXIT
kinds='application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json'

fail() {
  echo "digests: $*; nothing is changed." >&2
  exit 1
}

# What the registry has under the name: for all architectures, so that the digest holds on each.
ask() {
  curl --silent --show-error --location --max-time 60 --dump-header "$answer/head" --output "$answer/body" --write-out '%{http_code}' "$@"
}

digest_of() { # library/postgres 15-bookworm
  local url=$registry/v2/$1/manifests/$2 status challenge realm service token digest
  status=$(ask --header "Accept: $kinds" "$url") || fail "$1:$2: $registry does not answer"
  if [ "$status" = 401 ]; then # anybody may have a token for what is public
    challenge=$(grep -i '^www-authenticate: *bearer' "$answer/head" | tail -n 1 | tr -d '\r')
    realm=$(sed -n 's/.*realm="\([^"]*\)".*/\1/p' <<<"$challenge")
    service=$(sed -n 's/.*service="\([^"]*\)".*/\1/p' <<<"$challenge")
    status=$(ask --get --data-urlencode "service=$service" --data-urlencode "scope=repository:$1:pull" "$realm") ||
      fail "$1:$2: $realm does not answer"
    token=$(sed -n 's/.*"token" *: *"\([^"]*\)".*/\1/p' "$answer/body")
    status=$(ask --header "Accept: $kinds" --header "Authorization: Bearer $token" "$url") || fail "$1:$2: $registry does not answer"
  fi
  [ "$status" = 200 ] || fail "$1:$2: $registry answers $status"
  grep -q '"manifests"' "$answer/body" || fail "$1:$2: $registry answers with what is no list of images"
  digest=sha256:$(sha256sum "$answer/body" | cut -d ' ' -f 1)
  if grep -qi '^docker-content-digest:' "$answer/head" && ! grep -qi "^docker-content-digest: *$digest" "$answer/head"; then
    fail "$1:$2: $registry answers with something else than it says"
  fi
  echo "$digest"
}

named=$(sed -nE 's/^(FROM| +image:) +([a-z0-9./-]+:[A-Za-z0-9._-]+).*/\2/p' "${files[@]}" | grep -v '^spinloop:' | sort -u)
changes=()
while read -r name; do
  repository=${name%:*}
  case $repository in */*) ;; *) repository=library/$repository ;; esac
  digest=$(digest_of "$repository" "${name#*:}")
  changes+=(-e "s,^(FROM| +image:) +$name(@sha256:[0-9a-f]+)?,\\1 $name@$digest,")
  echo "$name@$digest"
done <<<"$named"
sed -i -E "${changes[@]}" "${files[@]}"
