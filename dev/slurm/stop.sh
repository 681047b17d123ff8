#!/usr/bin/env bash
# Ends the jobs and the daemons that start.sh started, found by their pid files. --purge removes their folder too.
set -uo pipefail
# shellcheck source=dev/slurm/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ -d "$dir" ] || exit 0
export SLURM_CONF=$dir/slurm.conf

end() { # pid file, name
  local pid tries
  if pid=$(pid_of "$1" "$2"); then
    kill "$pid" 2>/dev/null
    for ((tries = 0; tries < 100; tries++)); do
      pid_of "$1" "$2" >/dev/null || break
      sleep 0.1
    done
    ! pid_of "$1" "$2" >/dev/null || kill -KILL "$pid" 2>/dev/null
  fi
  rm -f "$1"
}

# Jobs first: slurmd leaves those that run alone when it ends.
if pid_of "$dir/slurmctld.pid" slurmctld >/dev/null; then
  timeout 5 scancel --user=root --full --signal=KILL 2>/dev/null
  timeout 5 scancel --user=root 2>/dev/null
  for ((tries = 0; tries < 50; tries++)); do
    [ -n "$(timeout 5 squeue --noheader --states=running,completing,suspended 2>/dev/null)" ] || break
    sleep 0.1
  done
fi
end "$dir/slurmctld.pid" slurmctld
end "$dir/slurmd.pid" slurmd
end "$dir/munged.pid" munged
rm -f "$dir"/munge.socket*
if [ "${1:-}" = --purge ]; then
  rm -rf "${dir:?}"
fi
exit 0
