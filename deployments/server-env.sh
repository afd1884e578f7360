#!/usr/bin/env bash
# Makes `.env`: the settings of one Prefect server on loopback behind a password of its own. `make server` calls it, `compose.yaml`
# needs it. Prefect reads `.env` from the folder a command is started in, so what is run in the checkout finds the server and logs in.
# usage: deployments/server-env.sh [FILE]      default: .env in the checkout; one that is there is never overwritten
# PORT  of the server (default 4200)
set -euo pipefail
cd "$(dirname "$0")/.."
file=${1:-.env}

show() {
  echo "UI: $(sed -n 's,^PREFECT_API_URL=\(.*\)/api$,\1,p' "$file")   log in with what stands after PREFECT_API_AUTH_STRING= in $file"
}

if [ -e "$file" ]; then
  # The last line counts, and a pair of quotes is no password.
  if ! grep '^PREFECT_SERVER_API_AUTH_STRING=' "$file" | tail -n 1 | grep -Eq "=[\"']?[^\"'[:space:]]"; then
    echo "server-env: $file has no PREFECT_SERVER_API_AUTH_STRING, so the server would require no password;" \
      "add the lines that 'deployments/server-env.sh /tmp/new.env' writes, or move the file away." >&2
    exit 2
  fi
  chmod 600 "$file"
  show
  exit 0
fi

port=${PORT:-4200}
case $port in '' | *[!0-9]*)
  echo "server-env: PORT=$port is no number; give one from 1024 to 65535." >&2
  exit 2
  ;;
esac
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; } # 192 bits; hex needs no quoting, in no URL either
password=$(secret)
umask 077
set -o noclobber # fails where another got there first
cat >"$file" <<ENV
# Made by deployments/server-env.sh. It holds passwords: keep it out of git and at mode 600. A variable of the same name in the environment wins.
# Address and login belong together: for another server set both. spinloop sends this login to this address only.
PREFECT_API_URL=http://127.0.0.1:$port/api
PREFECT_API_AUTH_STRING=admin:$password
PREFECT_CLIENT_CSRF_SUPPORT_ENABLED=true
PREFECT_WORKER_QUERY_SECONDS=0.5

# The server. Without a password any page in the browser, and any user of this machine, could start runs.
PREFECT_SERVER_API_HOST=127.0.0.1
PREFECT_SERVER_API_PORT=$port
PREFECT_SERVER_API_AUTH_STRING=admin:$password
PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED=true
PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS=http://127.0.0.1:$port
# Relative, so that the UI also works through a tunnel: ssh -L 4200:127.0.0.1:$port HOST
PREFECT_SERVER_UI_API_URL=/api
PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT=false
PREFECT_SERVER_ANALYTICS_ENABLED=false
# Postgres instead of SQLite is this one variable; the database must be there.
# PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@127.0.0.1:5432/prefect

# deployments/compose.yaml: its database's password, and whether its GPU pool's worker gets GPUs (gpu) or none (cpu).
POSTGRES_PASSWORD=$(secret)
COMPOSE_PROFILES=$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
ENV
echo "$file is made: the server's settings and its password."
show
