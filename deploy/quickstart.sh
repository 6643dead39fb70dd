#!/usr/bin/env bash
# The main job on this machine, from nothing: a coordinator with everything embedded, one agent, backups, restores that
# are compared. Everything lies in .quickstart/; run it again as often as you like.
#   deploy/quickstart.sh          do it
#   deploy/quickstart.sh stop     end what it started, keep the data
#   deploy/quickstart.sh clean    stop, and remove .quickstart/
set -euo pipefail
umask 077
cd -- "$(dirname -- "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
dir=$PWD/.quickstart
bin=$target/debug
host=127.0.0.1

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
say() { printf '  %s\n' "$*"; }
fail() { printf '\nquickstart: %s\n' "$*" >&2; exit 1; }
[ -t 1 ] || step() { printf '\n%s\n' "$*"; }

# ---- processes: a pid is ours only while its start time is the one that was noted
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
runs() { [ -f "$dir/$1.pid" ] && read -r pid at < "$dir/$1.pid" && [ -n "$at" ] && [ "$(started "$pid")" = "$at" ]; }
start() { # NAME COMMAND...
  local name=$1; shift
  setsid "$@" </dev/null >>"$dir/$name.log" 2>&1 &
  echo "$! $(started $!)" > "$dir/$name.pid"
}
stop() { # NAME [SIGNAL]
  if runs "$1"; then
    kill "-${2:-TERM}" "$pid"
    for _ in $(seq 300); do runs "$1" || break; sleep 0.1; done
    if runs "$1"; then kill -KILL "$pid"; fi
  fi
  rm -f "$dir/$1.pid"
}
wait_for() { # WHAT NAME CONDITION...
  local what=$1 name=$2; shift 2
  for _ in $(seq 1200); do
    "$@" && return
    runs "$name" || fail "$name ended. Its log: $dir/$name.log
$(tail -n 5 "$dir/$name.log")"
    sleep 0.1
  done
  fail "waited two minutes for: $what. Log: $dir/$name.log"
}
stop_all() { stop agent; stop coordinator; stop postgres QUIT; }

case ${1:-} in
  '') ;;
  stop) stop_all; echo "Stopped. The data is still in $dir."; exit ;;
  clean)
    stop_all
    if [ -f "$dir/postgres.dir" ]; then rm -rf -- "$(cat "$dir/postgres.dir")"; fi
    rm -rf -- "$dir"; echo "Removed $dir."; exit ;;
  *) echo "usage: $0 [stop|clean]" >&2; exit 2 ;;
esac

begun=$SECONDS
step "Installing and building"
tests/tools/install.sh quickstart
cargo build --workspace --bins --locked --quiet
say "built in $bin"

sealift() { SEALIFT_CONTEXT=$dir/coordinator/context.toml "$bin/sealift" "$@"; }
field() { sed -n "s/^ *\"$1\": *\[\{0,1\} *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

step "Starting a coordinator: database, certificate authority and S3 server in one process"
mkdir -p "$dir"
taken() { (exec 3<>"/dev/tcp/$host/$1") 2>/dev/null; }
if [ ! -f "$dir/port" ]; then
  for port in 7443 17443 27443 ''; do
    [ -n "$port" ] || fail "ports 7443, 17443 and 27443 are all taken"
    taken "$port" || taken $((port + 1)) || taken $((port + 2)) || break
  done
  echo "$port" > "$dir/port"
fi
port=$(cat "$dir/port")
ready() { grep -qx ready "$dir/coordinator.log"; }
if ! runs coordinator; then
  : > "$dir/coordinator.log"
  start coordinator "$bin/sealift-coordinator" dev --data-dir "$dir/coordinator" \
    --listen "$host:$port" --http-listen "$host:$((port + 1))" --s3-listen "$host:$((port + 2))"
  wait_for "the coordinator" coordinator ready
fi
say "https://$host:$port, data in $dir/coordinator"

step "Making the key that opens the backups, and signing that it may"
if [ ! -f "$dir/identity.key" ]; then
  sealift --output json keys generate --kind identity --out "$dir/identity.key" | field recipient > "$dir/recipient"
  sealift trust set --recipient "$(cat "$dir/recipient")" --single --yes >/dev/null 2>&1 || fail "trust set failed"
fi
say "$dir/identity.key: neither the agent nor the coordinator ever sees it"

step "Making something worth keeping"
data=$dir/data
if [ ! -d "$data" ]; then
  mkdir -p "$data.new/letters"
  cp -R docs README.md "$data.new/"
  ln -s README.md "$data.new/link"; ln "$data.new/README.md" "$data.new/letters/hard link"
  printf 'ümläut\n' > "$data.new/letters/grüße.txt"
  mv "$data.new" "$data"
fi
if [ ! -f "$dir/till.db" ]; then
  sqlite3 "$dir/till.new" "PRAGMA journal_mode = WAL; CREATE TABLE sales (id INTEGER PRIMARY KEY, item TEXT, cents INTEGER);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
    INSERT INTO sales SELECT i, 'item ' || (i * 7919 % 1000), i * 37 % 10000 FROM n;" >/dev/null
  mv "$dir/till.new" "$dir/till.db"
fi
sources=(files till)
say "a directory and a SQLite database in $dir"

# PostgreSQL, where it is installed: a private server. It refuses to run as root, and its user cannot enter root's home.
pg=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1 || true)
pg=${pg%/initdb}
if [ -n "$pg" ]; then
  as_server=()
  if [ "$(id -u)" = 0 ]; then as_server=(setpriv --reuid=nobody --regid="$(id -gn nobody)" --clear-groups --); fi
  if [ ! -f "$dir/postgres.dir" ]; then
    pgdir=$(mktemp -d /tmp/sealift-quickstart-XXXXXX)
    head -c 18 /dev/urandom | base64 > "$dir/postgres.password"
    cp "$dir/postgres.password" "$pgdir/password"
    if [ "$(id -u)" = 0 ]; then chown -R nobody "$pgdir"; fi
    "${as_server[@]}" "$pg/initdb" -D "$pgdir/data" -U postgres -A scram-sha-256 --pwfile="$pgdir/password" --locale=C.UTF-8 \
      --encoding=UTF8 >"$dir/initdb.log" 2>&1 || fail "initdb failed: $(tail -n 3 "$dir/initdb.log")"
    rm "$pgdir/password"; echo "$pgdir" > "$dir/postgres.dir"
  fi
  pgdir=$(cat "$dir/postgres.dir") pgport=$((port + 3))
  export PGHOST=$host PGPORT=$pgport PGUSER=postgres PGPASSFILE=$dir/pgpass
  echo "$host:$pgport:*:postgres:$(cat "$dir/postgres.password")" > "$PGPASSFILE"
  answers() { "$pg/pg_isready" -q; }
  if ! runs postgres; then
    start postgres "${as_server[@]}" "$pg/postgres" -D "$pgdir/data" -c "port=$pgport" -c "listen_addresses=$host" \
      -c "unix_socket_directories=$pgdir"
    wait_for PostgreSQL postgres answers
  fi
  if ! "$pg/psql" -qAt -d shop -c 'SELECT 1 FROM orders LIMIT 1' >/dev/null 2>&1; then
    "$pg/psql" -q -d postgres -c 'DROP DATABASE IF EXISTS shop' -c 'CREATE DATABASE shop' 2>/dev/null
    "$pg/psql" -q -d shop -c "CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS code, now() AS placed FROM generate_series(1, 100000) i"
  fi
  sources+=(shop)
  say "a PostgreSQL server on port $pgport"
fi

step "Enrolling this machine as a host of the fleet"
{
  echo "coordinators = [\"https://$host:$port\"]"
  echo "state_dir = \"$dir/agent\""
  printf '\n[[source]]\nname = "files"\nkind = "directory"\npath = "%s"\n' "$data"
  printf '\n[[source]]\nname = "till"\nkind = "sqlite"\npath = "%s"\n' "$dir/till.db"
  if [ -n "$pg" ]; then
    printf '\n[[source]]\nname = "shop"\nkind = "postgres"\nurl = "postgres://postgres@%s:%s/"\n' "$host" "$pgport"
    printf 'password = "file:%s"\ndatabases = ["shop"]\n' "$dir/postgres.password"
  fi
} > "$dir/agent.toml"
if [ ! -f "$dir/enrolled" ]; then
  sealift --output json token create --name this-host --ttl 10m > "$dir/token.json"
  field token < "$dir/token.json" > "$dir/token"
  "$bin/sealift-agent" enroll --coordinator "https://$host:$port" --token-file "$dir/token" --state-dir "$dir/agent" \
    --ca-sha256 "$(field ca_sha256 < "$dir/token.json")" --root-key-sha256 "$(tr -d '\n' < "$dir/token.json" | sed 's/.*"root_key_sha256": *\[ *"\([0-9a-f]*\)".*/\1/')" \
    >"$dir/enroll.log" 2>&1 || fail "enrolment failed: $(cat "$dir/enroll.log")"
  rm -f "$dir/token" "$dir/token.json"; touch "$dir/enrolled"
fi
runs agent || start agent "$bin/sealift-agent" run --config "$dir/agent.toml"
connected() { sealift --output json agent show this-host 2>/dev/null | grep -q '"connected": *true'; }
wait_for "the agent" agent connected
say "this-host is connected"

step "Backing up, twice: what is stored already is not sent again"
size() { sealift --output json backup show "latest:this-host/$1" | sed -n "s/^ *\"$2\": *\([0-9]*\),\{0,1\}$/\1/p" | head -n 1; }
for source in "${sources[@]}"; do
  for round in first second; do
    sealift backup run "this-host/$source" --wait >>"$dir/backup.log" 2>&1 || fail "the $round backup of $source failed: $(tail -n 5 "$dir/backup.log")"
    printf '  %-6s %-7s %10s bytes read, %10s new\n' "$source" "$round" "$(size "$source" raw_bytes)" "$(size "$source" new_raw_bytes)"
  done
done

step "Restoring, and comparing"
out=$dir/restored
rm -rf "$out"; mkdir -p "$out"
for source in "${sources[@]}"; do
  sealift restore "latest:this-host/$source" --identity "$dir/identity.key" --to "$out/$source" --yes >>"$dir/restore.log" 2>&1 \
    || fail "the restore of $source failed: $(tail -n 5 "$dir/restore.log")"
done
same() { say "$1: equal"; }
dump_of() { sqlite3 "$1" .dump; }
diff -r --no-dereference "$data" "$out/files" || fail "the directory came back different"
same "directory"
till=$(find "$out/till" -type f | head -n 1)
cmp <(dump_of "$dir/till.db") <(dump_of "$till") || fail "the SQLite database came back different"
same "SQLite database"
if [ -n "$pg" ]; then
  plain() { grep -vE '^\\(un)?restrict ' || true; }
  dump=$(find "$out/shop" -type f -name '*shop*' | head -n 1)
  "$pg/psql" -q -d postgres -c 'DROP DATABASE IF EXISTS shop_restored' -c 'CREATE DATABASE shop_restored' 2>/dev/null
  "$pg/psql" -q -o /dev/null -v ON_ERROR_STOP=1 -d shop_restored -f "$dump"
  cmp <("$pg/pg_dump" -d shop | plain) <("$pg/pg_dump" -d shop_restored | plain) || fail "the PostgreSQL database came back different"
  "$pg/psql" -q -d postgres -c 'DROP DATABASE shop_restored'
  same "PostgreSQL database"
fi

step "The same with the bucket and the key alone: no coordinator asked"
offline() { (. "$dir/coordinator/s3.env"; "$bin/sealift" restore --offline --bucket sealift --endpoint "http://$host:$((port + 2))" --region us-east-1 --identity "$dir/identity.key" "$@"); }
series=$(sealift --output json backup show latest:this-host/files | field series_id)
offline --series "$series" --to "$out/offline" --yes >>"$dir/restore.log" 2>&1 || fail "the offline restore failed: $(tail -n 5 "$dir/restore.log")"
diff -r --no-dereference "$data" "$out/offline" || fail "the directory came back different"
same "directory"

step "Done in $((SECONDS - begun)) s: backed up, restored, compared, equal."
cat <<TEXT
  Go on (the coordinator and the agent keep running):
    export PATH=$bin:\$PATH SEALIFT_CONTEXT=$dir/coordinator/context.toml
    sealift status
    sealift backup list
    sealift browse latest:this-host/files --identity $dir/identity.key
    sealift backup run this-host/till --wait
  Stop it:    deploy/quickstart.sh stop        remove it: deploy/quickstart.sh clean
  For real:   deploy/ has units and configs; start with README.md
TEXT
