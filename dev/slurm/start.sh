#!/usr/bin/env bash
# Starts a throw-away one-machine Slurm (Debian, root) and prints where its environment is:
#   bash dev/slurm/start.sh && source runs/slurm_dev/environment.sh
# A cluster that already runs is left alone. Settings, all from the environment:
#   VISSL_LIKE_SLURM_DIR          folder for state and logs       [runs/slurm_dev]
#   VISSL_LIKE_SLURM_CPUS         cores that the node declares    [all]
#   VISSL_LIKE_SLURM_GRACE        seconds of warning before a pre-empted job is killed  [30]
#   VISSL_LIKE_SLURM_PORT         of the controller; the node takes the next one        [27817]
#   VISSL_LIKE_SLURM_USER_SIGNAL  1: pre-emption also sends the job's own signal        [1]
set -euo pipefail
# shellcheck source=dev/slurm/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
port=${VISSL_LIKE_SLURM_PORT:-27817}
host=$(hostname -s)

install_packages() {
  local missing=() command
  for command in slurmctld slurmd munged; do
    type -P "$command" >/dev/null || missing+=("${command/munged/munge}")
  done
  type -P sbatch >/dev/null || missing+=(slurm-client)
  [ ${#missing[@]} -gt 0 ] || return 0
  [ -r /etc/debian_version ] || { tell "not Debian, and these are not installed: ${missing[*]}"; return 1; }
  tell "installing ${missing[*]}"
  # The packages' own services must not start: this cluster has its own configuration.
  local policy=/usr/sbin/policy-rc.d ours=""
  if [ ! -e "$policy" ]; then
    ours=1
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT # also when it is interrupted: it would keep every later service from starting
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  local log=$dir/install.log get=(apt-get -q -y -o DPkg::Lock::Timeout=300) done=0
  export DEBIAN_FRONTEND=noninteractive
  "${get[@]}" install --no-install-recommends "${missing[@]}" >"$log" 2>&1 ||
    { "${get[@]}" update && "${get[@]}" install --no-install-recommends "${missing[@]}"; } >>"$log" 2>&1 || done=1
  [ -z "$ours" ] || { rm -f "$policy"; trap - EXIT; }
  [ "$done" = 0 ] || { tail -n 20 "$log" >&2; return 1; }
}

write_configuration() {
  local cpus memory signal=""
  cpus=${VISSL_LIKE_SLURM_CPUS:-$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)} # nproc obeys OpenMP
  memory=$(awk '/^MemTotal:/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  [ "${VISSL_LIKE_SLURM_USER_SIGNAL:-1}" = 0 ] || signal="SlurmctldParameters=preempt_send_user_signal"
  sed -e "s|{HOST}|$host|g; s|{DIR}|$dir|g; s|{PORT}|$port|; s|{NODE_PORT}|$((port + 1))|; s|{CPUS}|$cpus|g" \
    -e "s|{MEMORY}|$memory|; s|{GRACE}|${VISSL_LIKE_SLURM_GRACE:-30}|; s|{USER_SIGNAL}|$signal|" \
    "$here/slurm.conf.in" >"$dir/slurm.conf"
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$dir/cgroup.conf"
  : >"$dir/plugstack.conf"
  install -m 755 "$here/sacct" "$dir/bin/sacct"
  cat >"$dir/environment.sh" <<END
export SLURM_CONF=$dir/slurm.conf
export PATH=$dir/bin:\$PATH
END
}

start_munge() {
  if [ ! -e "$dir/munge.key" ]; then
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
  fi
  pid_of "$dir/munged.pid" munged >/dev/null || {
    rm -f "$dir"/munge.socket*
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
      --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" 2>>"$dir/munged.err"
  }
  local tries
  for ((tries = 0; tries < 50; tries++)); do
    ! munge --no-input --socket="$dir/munge.socket" >/dev/null 2>&1 || return 0
    sleep 0.1
  done
  tell "munged does not answer; see $dir/munged.log"
  return 1
}

# Up means: the node is usable and a job has really run on it.
wait_until_up() {
  local until=$((SECONDS + 40)) state
  while [ $SECONDS -lt $until ]; do
    state=$(timeout 3 sinfo --noheader --partition=main --format=%T 2>/dev/null || true)
    case $state in
      idle | mixed | allocated | completing)
        ! timeout 10 srun --quiet --immediate=5 --partition=high --ntasks=1 --mem=1 true 2>>"$dir/probe.err" </dev/null || return 0
        ;;
      down* | drain*) timeout 3 scontrol update "NodeName=$host" State=RESUME 2>/dev/null || true ;;
    esac
    sleep 0.2
  done
  tell "not up after 40 s: the node is '${state:-unknown}'"
  tail -n 15 "$dir/slurmctld.log" "$dir/slurmd.log" >&2
  return 1
}

[ "$(id -u)" = 0 ] || { tell "must be root"; exit 1; }
mkdir -p "$dir/bin" "$dir/state" "$dir/spool"
chmod 755 "$dir"
install_packages
if pid_of "$dir/slurmctld.pid" slurmctld >/dev/null && pid_of "$dir/slurmd.pid" slurmd >/dev/null; then
  tell "already running; source $dir/environment.sh"
  exit 0
fi
# What is half alive is ended first; its jobs are lost, and its memory of them too.
bash "$here/stop.sh"
rm -rf "${dir:?}/state" "${dir:?}/spool"
mkdir -p "$dir/state" "$dir/spool"
write_configuration
export SLURM_CONF=$dir/slurm.conf
start_munge
slurmctld -c -f "$SLURM_CONF"
slurmd -N "$host" -f "$SLURM_CONF"
wait_until_up
tell "up; source $dir/environment.sh"
