#!/usr/bin/env bash
# Cuts a release in this checkout; `make release VERSION=0.2.0` calls it. What CHANGELOG.md has under [Unreleased] becomes that version, with
# today's date; pyproject.toml, CITATION.cff and the image's tag in deployments/ and docs/ get the version; the wheel and the version's notes are in
# dist/; one commit, and the tag v0.2.0.
# The wheel is built first: where anything fails, nothing is committed and the files are as before. Nothing is pushed or uploaded.
# VERSION  what to release: MAJOR.MINOR.PATCH, above the one in pyproject.toml
# PYTHON   an interpreter with pip and setuptools (default .venv/bin/python)
set -euo pipefail
cd "$(dirname "$0")/.."
version=${VERSION:-}
images=(deployments/Dockerfile deployments/compose.yaml deployments/kubernetes/*.yaml docs/docker.md docs/kubernetes.md)
files=(CHANGELOG.md CITATION.cff pyproject.toml "${images[@]}")

refuse() {
  echo "release: $*" >&2
  exit 2
}

[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || refuse "VERSION is \"$version\"; give MAJOR.MINOR.PATCH, such as VERSION=0.2.0."
[[ $(git symbolic-ref --quiet --short HEAD) == main ]] || refuse "this checkout is not on the branch main; switch to it."
[[ -z $(git status --porcelain) ]] || refuse "there are changes that are not committed; commit them first (git status)."
last=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
[[ $version != "$last" && $(printf '%s\n' "$last" "$version" | sort -V | tail -n 1) == "$version" ]] ||
  refuse "VERSION=$version is not above $last, which pyproject.toml has; give a higher one."
! git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null || refuse "there is a tag v$version already; give another version."
notes=$(awk '/^## \[/ { inside = /^## \[Unreleased\]/; next } inside' CHANGELOG.md)
[[ -n ${notes//[[:space:]]/} ]] || refuse "CHANGELOG.md has nothing under [Unreleased]; say there what changed for users."

copy=$(mktemp -d)
released=
trap 'rm -rf "$copy"; [[ -n $released ]] || git checkout --quiet HEAD -- "${files[@]}"' EXIT
today=$(date -u +%F)

rewrite() { # FILE PROGRAM: the file as awk prints it
  awk -v version="$version" -v today="$today" "$2" "$1" >"$copy/rewritten"
  cat "$copy/rewritten" >"$1"
}
# shellcheck disable=SC2016  # $0 is awk's
{
  rewrite CHANGELOG.md '{ print } /^## \[Unreleased\]/ { print "\n## [" version "] - " today }'
  rewrite pyproject.toml '/^version = / { $0 = "version = \"" version "\"" } { print }'
  rewrite CITATION.cff '/^date-released:/ { next } /^version:/ { $0 = "version: " version "\ndate-released: " today } { print }'
  for file in "${images[@]}"; do
    rewrite "$file" '{ gsub(/spinloop:[0-9]+\.[0-9]+\.[0-9]+/, "spinloop:" version); gsub(/newTag: [0-9]+\.[0-9]+\.[0-9]+/, "newTag: " version); print }'
  done
}

# Of a copy of the files that git knows: what an earlier build left in build/ must not be in the wheel.
mkdir -p "$copy/source" dist
git ls-files -z | tar --create --null --files-from - | tar --extract --directory "$copy/source"
"${PYTHON:-.venv/bin/python}" -m pip --disable-pip-version-check wheel --quiet --no-index --no-deps --no-build-isolation \
  --wheel-dir dist "$copy/source"
wheels=(dist/spinloop-"$version"-*.whl)
[[ -f ${wheels[0]} ]] || refuse "pip built no wheel of $version."
printf '# spinloop %s\n%s\n' "$version" "$notes" >"dist/spinloop-$version.md"

git commit --quiet --message "Release $version" -- "${files[@]}"
released=yes
git tag --annotate --message "spinloop $version" "v$version"
echo "spinloop $version: commit $(git rev-parse --short HEAD), tag v$version, ${wheels[0]}, dist/spinloop-$version.md. Nothing was pushed."
