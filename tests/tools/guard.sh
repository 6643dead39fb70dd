#!/usr/bin/env bash
# Ends a Ceph RGW that several test processes share once the process that started the run is gone.
#   guard.sh PID STARTED DIR     PID and its start time (field 22 of /proc/PID/stat); DIR as given to rgw.sh
set -euo pipefail
pid=$1 started=$2 dir=$3
now() { sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | awk '{print $20}'; }
while [ "$(now)" = "$started" ]; do sleep 1; done
"$(dirname -- "$0")/rgw.sh" "$dir" stop || true
rm -rf -- "$dir" "$dir.lock"
