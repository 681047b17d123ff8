# shellcheck shell=bash disable=SC2034
# Read by start.sh and stop.sh: where things are, and which daemons live.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${VISSL_LIKE_SLURM_DIR:-$(cd "$here/../.." && pwd)/runs/slurm_dev}

tell() { printf 'dev/slurm: %s\n' "$*" >&2; }

# The process of a pid file, if it lives and bears that name. A zombie whose parent never asks for it still has a
# number, and kill -0 would call it alive.
pid_of() { # pid file, name
  local pid
  [ -s "$1" ] || return 1
  pid=$(<"$1")
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 1
  ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status" 2>/dev/null || return 1
  echo "$pid"
}
