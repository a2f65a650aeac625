#!/usr/bin/env bash
# A SLURM of one node on this machine, for tests: no cgroups, no accounting, so that it runs in a container.
#
#   sudo scripts/slurm_local.sh start   install it from Debian's packages where it is missing, and start it
#   sudo scripts/slurm_local.sh stop    cancel its jobs and stop its daemons
set -euo pipefail

CONF=/etc/slurm/slurm.conf
MARK="# Written by scripts/slurm_local.sh of uqbench."
STATE=/var/lib/slurm-local
RUN=/run/slurm-local
PACKAGES=(slurm-wlm munge)

fail() {
    echo "slurm_local.sh: $*" >&2
    exit 1
}

installed() {
    command -v slurmctld >/dev/null && command -v munged >/dev/null
}

install_packages() {
    installed && return
    command -v apt-get >/dev/null || fail "SLURM is not installed and there is no apt-get; install ${PACKAGES[*]}"
    # The packages start no daemon of their own in a container; elsewhere this keeps them from doing so.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" >/dev/null ||
        fail "apt-get could not install ${PACKAGES[*]}"
}

configure() {
    if [ -e "$CONF" ] && ! grep -qF "$MARK" "$CONF"; then
        fail "$CONF belongs to another SLURM; this script leaves it alone"
    fi
    mkdir -p "$(dirname "$CONF")" "$STATE/ctld" "$STATE/d" "$RUN"
    cat >"$CONF" <<END
$MARK
ClusterName=local
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
# Requeued jobs start again only when their old credentials have expired: two minutes by default.
AuthInfo=cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobRequeue=1
MinJobAge=300
KillWait=30
SlurmdTimeout=300
ReturnToService=2
# Quick answers, for tests.
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/d
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
NodeName=localhost CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
END
}

running() { # the daemon that a pid file names is alive, and no zombie, which a container's first process may leave
    [ -s "$1" ] && grep -q "^State:[[:space:]]*[^Z[:space:]]" "/proc/$(cat "$1")/status" 2>/dev/null
}

wait_for() { # SECONDS WHAT COMMAND...: until the command succeeds
    local seconds=$1 what=$2
    shift 2
    for _ in $(seq "$((seconds * 5))"); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    fail "$what (logs in $STATE)"
}

idle() {
    sinfo -h -N -o %T | grep -qE "^(idle|mixed|allocated)$"
}

start() {
    install_packages
    if running "$RUN/slurmctld.pid" && running "$RUN/slurmd.pid" && idle; then
        echo "slurm_local.sh: is running already"
        return
    fi
    stop
    configure
    # munge insists on folders that nobody else can write to.
    install -d -o munge -g munge -m 0755 /run/munge
    [ -e /etc/munge/munge.key ] ||
        { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none &&
            chown munge:munge /etc/munge/munge.key && chmod 0400 /etc/munge/munge.key; }
    munge -n >/dev/null 2>&1 || { runuser -u munge -- munged && touch "$RUN/munged-is-ours"; }
    wait_for 10 "munged does not answer" munge -n
    slurmctld
    slurmd
    wait_for 10 "slurmctld does not answer" scontrol ping
    # The state of the last time may say that the node is down or drained.
    scontrol update NodeName=localhost State=RESUME 2>/dev/null || true
    wait_for 30 "the node does not become idle" idle
    echo "slurm_local.sh: $(sinfo -h -o '%D node with %c cores, partition %P')"
}

stop_daemon() { # PIDFILE
    running "$1" || return 0
    kill "$(cat "$1")"
    for _ in $(seq 50); do
        running "$1" || return 0
        sleep 0.2
    done
    kill -9 "$(cat "$1")"
}

stop() {
    if running "$RUN/slurmctld.pid"; then
        scancel --state=PENDING --state=RUNNING --user=root 2>/dev/null || true
        for _ in $(seq 100); do
            [ -z "$(squeue -h 2>/dev/null)" ] && break
            sleep 0.2
        done
    fi
    stop_daemon "$RUN/slurmd.pid"
    stop_daemon "$RUN/slurmctld.pid"
    if [ -e "$CONF" ] && grep -qF "$MARK" "$CONF"; then
        [ ! -e "$RUN/munged-is-ours" ] || stop_daemon /run/munge/munged.pid
        rm -rf "$STATE" "$RUN" "$CONF"
    fi
}

case "${1:-}" in
start | stop) [ "$(id -u)" = 0 ] || fail "needs root: sudo $0 $1" ;;
*)
    echo "usage: $0 start|stop" >&2
    exit 2
    ;;
esac
"$1"
[ "$1" = stop ] && echo "slurm_local.sh: stopped" || true
