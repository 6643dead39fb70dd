#!/usr/bin/env bash
# Installs what the tests need and this machine lacks (Debian 12): packages, a Python environment in the target
# directory, cargo-nextest. Asks nothing, starts no service, and is quick when nothing is missing.
#   install.sh              for the tests
#   install.sh quickstart   only what building and the quickstart need
set -euo pipefail
cd -- "$(dirname -- "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
# Version of cargo-nextest that builds with the project's Rust.
nextest=0.9.143

say() { echo "install: $*" >&2; }
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }

for_what=${1:-tests}
# command:package
wanted=(cc:gcc sqlite3:sqlite3 setpriv:util-linux)
[ "$for_what" = quickstart ] || wanted+=(
  curl:curl age:age setfattr:attr
  mariadbd:mariadb-server-core mariadb:mariadb-client mariadb-dump:mariadb-client
  pgrep:procps # with it comes /bin/kill, which the unit names
  ceph-mon:ceph-mon ceph-osd:ceph-osd radosgw:radosgw ceph:ceph-common radosgw-admin:radosgw aws:awscli systemd-analyze:systemd
)
missing=()
for pair in "${wanted[@]}"; do have "${pair%%:*}" || missing+=("${pair##*:}"); done
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
if [ "$for_what" != quickstart ]; then
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
  compgen -G '/usr/share/postgresql/*/extension/hstore.control' >/dev/null || missing+=(postgresql-contrib)
  python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
fi

if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${missing[*]}"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    have sudo || { say "not root and no sudo: install these yourself: ${missing[*]}"; exit 1; }
    as_root=(sudo -n)
  fi
  # Debian starts what it installs. The tests start servers of their own, so: no service, and no cluster `main`,
  # unless this machine has said otherwise before.
  policy=/usr/sbin/policy-rc.d cluster=/etc/postgresql-common/createcluster.conf
  if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
  fi
  if [ ! -e "$cluster" ]; then
    "${as_root[@]}" mkdir -p "${cluster%/*}"
    echo 'create_main_cluster = false' | "${as_root[@]}" tee "$cluster" >/dev/null
  fi
  apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q \
      -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "$@" </dev/null >&2
  }
  apt update
  apt install -y --no-install-recommends "${missing[@]}"
fi

[ "$for_what" != quickstart ] || exit 0

# Python: what the independent restorer needs, and rclone, whose server does not verify signed body hashes.
venv=$target/venv
requirements=(tests/tools/requirements.txt)
[ -e tests/restorer/requirements.txt ] && requirements+=(tests/restorer/requirements.txt)
stamp=$venv/.installed-$(cat "${requirements[@]}" | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  say "Python environment in $venv"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-input "${requirements[@]/#/--requirement=}" >&2
  touch "$stamp"
fi

if ! cargo nextest --version >/dev/null 2>&1; then
  say "cargo-nextest $nextest"
  cargo install --locked cargo-nextest --version "$nextest"
fi
