#!/usr/bin/env bash
# A real Slurm cluster of virtual nodes on this one machine: to try a job before it meets a real cluster, and
# for the tests. Needs Debian or Ubuntu; installs Slurm from there the first time (as root, about 20 s).
#
#   slurm/local_cluster.sh up [N_NODES]     bring it up (default 2 nodes); returns when every node is idle
#   slurm/local_cluster.sh down             end jobs and daemons, by recorded pid
#   slurm/local_cluster.sh status           exit 0 and print sinfo when every daemon is alive, else exit 1
#   slurm/local_cluster.sh env              print what clients need:  eval "$(slurm/local_cluster.sh env)"
#   slurm/local_cluster.sh crash NODE       power-cut: SIGKILL the node's daemon and every process on it
#   slurm/local_cluster.sh boot NODE        start a crashed node again and wait until it is usable
#
# Partitions: debug (default), low (a job in debug or high preempts it: requeued), high, grace (as low, with
# 20 s between the warning and the end).
#
# Settings (environment):
#   MMLAB_SLURM_DIR           state directory               (${TMPDIR:-/tmp}/mmlab-slurm)
#   MMLAB_SLURM_PORT          first of N+1 TCP ports        (26800; outside 15000-24999, which Lightning uses
#                             for MASTER_PORT, and below the ephemeral range)
#   MMLAB_SLURM_CPUS          CPUs each node declares       (2; may exceed the real count)
#   MMLAB_SLURM_MEM           MB each node declares         (4000; declared, not enforced)
#   MMLAB_SLURM_GPUS          fake GPUs per node            (2; 0 to omit)
#   MMLAB_SLURM_ISOLATION     auto | ns | plain             (auto)
#       ns:    each node has its own UTS+PID+mount namespace: own hostname, own /proc, own /dev/shm, private
#              /etc/hosts; needs root with CAP_SYS_ADMIN.
#       plain: slurmds are ordinary processes that share the hostname (works in an unprivileged container; as
#              root it adds marked lines to /etc/hosts and takes them out again).
#   MMLAB_SLURM_KILL_WAIT     seconds SIGTERM -> SIGKILL    (5; Slurm's default is 30)
#   MMLAB_SLURM_NODE_TIMEOUT  a silent node is DOWN after about this + 20 s (10; Slurm's default is 300)
set -euo pipefail

DIR=${MMLAB_SLURM_DIR:-${TMPDIR:-/tmp}/mmlab-slurm}
PORT=${MMLAB_SLURM_PORT:-26800}
CPUS=${MMLAB_SLURM_CPUS:-2}
MEM=${MMLAB_SLURM_MEM:-4000}
GPUS=${MMLAB_SLURM_GPUS:-2}
ISO=${MMLAB_SLURM_ISOLATION:-auto}
KILL_WAIT=${MMLAB_SLURM_KILL_WAIT:-5}
NODE_TIMEOUT=${MMLAB_SLURM_NODE_TIMEOUT:-10}
ME=$(id -un)
MARK="# local_cluster.sh $DIR"
export SLURM_CONF=$DIR/etc/slurm.conf
export PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

say() { echo "local_cluster: $*" >&2; }
die() { say "ERROR: $*"; exit 1; }

# ---- processes: every pid is recorded with its start time, so a recycled pid is never signalled
starttime() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; [ "$1" != Z ] || return 1; echo "${20}"; }
record()  { echo "$2 $(starttime "$2")" > "$DIR/run/$1.pid"; }
alive()   { local p s; { read -r p s < "$DIR/run/$1.pid"; } 2>/dev/null || return 1; [ "$(starttime "$p")" = "$s" ]; }
pid_of()  { local p _; read -r p _ < "$DIR/run/$1.pid"; echo "$p"; }
wait_for() { # SECONDS CMD...
    local end=$((SECONDS + $1)); shift
    until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}
dead()    { ! alive "$1"; }
stop()    { # NAME [SIGNAL [SECONDS]]
    alive "$1" || { rm -f "$DIR/run/$1.pid"; return 0; }
    kill "-${2:-TERM}" "$(pid_of "$1")" 2>/dev/null || true
    wait_for "${3:-10}" dead "$1" || { kill -KILL "$(pid_of "$1")" 2>/dev/null || true; wait_for 5 dead "$1" || die "cannot stop $1"; }
    rm -f "$DIR/run/$1.pid"
}
spawn()   { # NAME LOG CMD...   (detached: its own session, no inherited lock/stdio)
    local name=$1 log=$2; shift 2
    setsid "$@" </dev/null >>"$log" 2>&1 9>&- &
    record "$name" $!
    disown
}
port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# ---- packages
cmd_install() {
    local want=(munge slurmctld slurmd slurm-client)
    # several clusters may start at once, and install once
    exec 8>"${TMPDIR:-/tmp}/mmlab-slurm-install.lock"; flock -w 300 8 || die "another process is installing Slurm"
    if [ "$(command -v munged slurmctld slurmd sbatch | wc -l)" = 4 ]; then exec 8>&-; return 0; fi
    command -v apt-get >/dev/null || die "Slurm is not installed, and there is no apt-get to install it"
    [ "$(id -u)" = 0 ] || die "missing packages (${want[*]}) and not root"
    say "installing ${want[*]}"
    # the packages' own services must not start: they would fail, or compete for the default ports
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' > $policy; chmod 755 $policy; made=1; fi
    local rc=0
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "${want[@]}"; } >"$DIR/log/apt.log" 2>&1 8>&- 9>&- || rc=$?
    [ -z "$made" ] || rm -f $policy
    [ $rc = 0 ] || { tail -20 "$DIR/log/apt.log" >&2; die "apt-get failed ($rc)"; }
    exec 8>&-
}

# ---- configuration
write_conf() { # N
    local n=$1 i s2 host=localhost inaddr=NoCtldInAddrAny
    # NoInAddrAny keeps slurmd and srun off 0.0.0.0, but binds srun to the address of its hostname, while
    # the nodes call it back on 127.0.0.1: only right where the hostname means 127.0.0.1. (For the same
    # reason every node has the address 127.0.0.1 and differs by port only.)
    [ "$(getent ahostsv4 "$(uname -n)" | awk 'NR==1{print $1}')" != 127.0.0.1 ] || inaddr+=,NoInAddrAny
    {
        echo "127.0.0.1 localhost"
        echo "::1 localhost ip6-localhost"
        grep -vE '^\s*(127\.0\.0\.1|::1)\s+localhost' /etc/hosts | grep -vF "$MARK" || true
        for ((i = 1; i <= n; i++)); do echo "127.0.0.1 node$i"; done
    } > "$DIR/etc/hosts"
    cat > "$SLURM_CONF" <<EOF
ClusterName=virtual
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock,cred_expire=10
CredType=cred/munge
CommunicationParameters=$inaddr
StateSaveLocation=$DIR/ctld
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.daemon
SlurmdPidFile=$DIR/run/%n.daemon
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
MailProg=/bin/true
FirstJobId=1001
MinJobAge=3600
MaxArraySize=10001
# nothing that needs cgroups, systemd or real hardware
# As under cgroups (which need rights that a container lacks), SIGTERM reaches the batch shell and not the srun
# that it waits for; proctrack/linuxproc would signal srun too, which then kills the tasks at once.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
# fast reactions
SlurmctldTimeout=10
SlurmdTimeout=$NODE_TIMEOUT
InactiveLimit=0
KillWait=$KILL_WAIT
WaitTime=0
ReturnToService=2
UnkillableStepTimeout=60
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# preemption: debug and high preempt low and grace; the preempted job is requeued
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.txt
EOF
    : > "$DIR/etc/gres.conf"
    if [ "$GPUS" -gt 0 ]; then
        echo "GresTypes=gpu" >> "$SLURM_CONF"
        for ((i = 0; i < GPUS; i++)); do ln -sfn /dev/null "$DIR/dev/gpu$i"; done  # must be character devices
        s2="[0-$((GPUS - 1))]"; [ "$GPUS" -gt 1 ] || s2=0
        echo "Name=gpu File=$DIR/dev/gpu$s2" > "$DIR/etc/gres.conf"
    fi
    for ((i = 1; i <= n; i++)); do
        [ "$ISO" = plain ] || host=node$i
        echo "NodeName=node$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + i)) CPUs=$CPUS RealMemory=$MEM$([ "$GPUS" -gt 0 ] && echo " Gres=gpu:$GPUS") State=UNKNOWN"
    done >> "$SLURM_CONF"
    cat >> "$SLURM_CONF" <<EOF
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=high  Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF State=UP
PartitionName=low   Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 State=UP
PartitionName=grace Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
EOF
    # Slurm >= 23.11 wants a cgroup plugin unless told otherwise; older versions reject the word
    case $(slurmctld -V | grep -oE '[0-9]+\.[0-9]+' | head -1) in
        2[0-2].*|23.02) : ;;
        *) echo "CgroupPlugin=disabled" > "$DIR/etc/cgroup.conf" ;;
    esac
}

hosts_add() { # plain mode only: make node names resolve
    local i missing=
    for ((i = 1; i <= $1; i++)); do getent hosts node$i >/dev/null || missing=1; done
    [ -n "$missing" ] || return 0
    if [ -w /etc/hosts ]; then
        for ((i = 1; i <= $1; i++)); do echo "127.0.0.1 node$i $MARK"; done >> /etc/hosts
    else
        say "WARNING: /etc/hosts is not writable: node names will not resolve; set MASTER_ADDR=127.0.0.1 in jobs"
    fi
}
hosts_del() { # rewrite in place: /etc/hosts is a bind mount in containers, so it cannot be renamed over
    grep -qF "$MARK" /etc/hosts 2>/dev/null && [ -w /etc/hosts ] || return 0
    local rest; rest=$(grep -vF "$MARK" /etc/hosts || true); printf '%s\n' "$rest" > /etc/hosts
}

can_ns() { [ "$(id -u)" = 0 ] && unshare --uts --pid --mount --fork --mount-proc sh -c 'echo x > /proc/sys/kernel/hostname' 2>/dev/null; }

# ---- daemons
start_munge() {
    dd if=/dev/urandom of="$DIR/munge/munge.key" bs=1024 count=1 status=none; chmod 400 "$DIR/munge/munge.key"
    spawn munged "$DIR/log/munged.out" munged --foreground --num-threads=4 --key-file="$DIR/munge/munge.key" \
        --socket="$DIR/munge/munge.sock" --pid-file="$DIR/run/munged.daemon" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/munged.seed"
    wait_for 10 sh -c "munge -n -S '$DIR/munge/munge.sock' 2>/dev/null | unmunge -S '$DIR/munge/munge.sock' >/dev/null 2>&1" || { cat "$DIR/log/munged.log" "$DIR/log/munged.out" >&2; die "munged did not start"; }
}
start_node() { # NAME
    local node=$1
    mkdir -p "$DIR/spool/$node"
    if [ "$ISO" = ns ]; then
        # bash is pid 1 of the namespace and reaps orphans; killing unshare kills the whole node
        spawn "$node" "$DIR/log/$node.out" unshare --uts --pid --mount --fork --kill-child=SIGKILL --mount-proc -- bash -c '
            set -e
            echo "$1" > /proc/sys/kernel/hostname
            mount --bind "$2/etc/hosts" /etc/hosts
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            slurmd -D -N "$1" &
            wait $!' slurm-node "$node" "$DIR"
    else
        spawn "$node" "$DIR/log/$node.out" slurmd -D -N "$node"
    fi
}
nodes() { sed -n 's/^NodeName=\(node[0-9]*\) .*/\1/p' "$SLURM_CONF"; }
usable() { # every (or the named) node is in a state that accepts jobs
    local out; out=$(timeout 5 sinfo -h -N -p debug ${1:+-n "$1"} -o '%T' 2>/dev/null) || return 1
    [ -n "$out" ] && ! grep -qvE '^(idle|mixed|allocated|completing)$' <<<"$out"
}
all_idle() { local out; out=$(timeout 5 sinfo -h -N -p debug -o '%T' 2>/dev/null) || return 1; [ "$(grep -c '^idle$' <<<"$out")" = "$1" ]; }
running() { local d; [ -f "$SLURM_CONF" ] && alive munged && alive slurmctld || return 1; for d in $(nodes); do alive "$d" || return 1; done; }

lock() { mkdir -p "$DIR"; chmod 755 "$DIR"; exec 9>"$DIR/lock"; flock -w 300 9 || die "another local_cluster.sh holds $DIR/lock"; }

cmd_up() {
    local n=${1:-2} i t0=$SECONDS
    [[ $n =~ ^[0-9]+$ && $n -ge 1 && $n -le 64 ]] || die "N_NODES must be 1..64"
    lock
    if running && [ "$(nodes | wc -l)" = "$n" ] && usable; then say "already up: $n nodes"; return 0; fi
    trap 'rc=$?; trap - EXIT; stop_all; exit $rc' EXIT   # a failed "up" leaves nothing running
    stop_all
    rm -rf "$DIR"/{ctld,spool,munge,run,etc,dev}
    mkdir -p "$DIR"/{ctld,spool,munge,run,etc,dev,log}; chmod 755 "$DIR"/{ctld,spool,munge,run,etc,dev,log}
    rm -f "$DIR"/log/*
    cmd_install
    [ "$ISO" != auto ] || { if can_ns; then ISO=ns; else ISO=plain; fi; }
    for ((i = 0; i <= n; i++)); do port_free $((PORT + i)) || die "port $((PORT + i)) is taken: set MMLAB_SLURM_PORT"; done
    write_conf "$n"
    echo "$ISO" > "$DIR/etc/isolation"
    [ "$ISO" = ns ] || hosts_add "$n"
    start_munge
    spawn slurmctld "$DIR/log/slurmctld.out" slurmctld -D
    for ((i = 1; i <= n; i++)); do start_node node$i; done
    wait_for 60 eval "all_idle $n || ! running" || true
    if ! all_idle "$n"; then
        sinfo -N -l >&2 || true; tail -n 5 "$DIR"/log/*.log >&2 || true
        die "nodes did not become idle within 60 s (logs in $DIR/log)"
    fi
    trap - EXIT
    say "up: $n nodes, isolation=$ISO, $((SECONDS - t0)) s.   eval \"\$($0 env)\""
}

stop_all() {
    [ -d "$DIR/run" ] || return 0
    local f d
    if [ -f "$SLURM_CONF" ] && alive slurmctld; then
        # let Slurm end its own jobs first, so that nothing outlives the daemons
        local ids; ids=$(timeout 10 squeue -h -o %A 2>/dev/null | sort -u) || ids=
        if [ -n "$ids" ]; then
            timeout 20 scancel $ids >/dev/null 2>&1 || true
            wait_for $((KILL_WAIT + 10)) sh -c '[ -z "$(timeout 5 squeue -h 2>/dev/null)" ]' || say "some jobs did not end"
        fi
    fi
    for f in "$DIR"/run/node*.pid; do [ -e "$f" ] || continue; d=${f##*/}; d=${d%.pid}; node_stop "$d" TERM; done
    stop slurmctld TERM 15
    stop munged
    hosts_del
}
# all processes of a node in plain mode: slurmstepds (they detach from slurmd) and their descendants,
# known by the SLURM_CONF of this cluster and the node's name in their environment
node_procs() {
    local p
    for p in /proc/[0-9]*; do
        { tr '\0' '\n' < "$p/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF"; } 2>/dev/null || continue
        { tr '\0' '\n' < "$p/environ" | grep -qxF "SLURMD_NODENAME=$1"; } 2>/dev/null || continue
        echo "${p#/proc/}"
    done
}
node_stop() { # NAME SIGNAL
    if [ "$(cat "$DIR/etc/isolation" 2>/dev/null)" = ns ]; then stop "$1" KILL; return; fi
    stop "$1" "$2"
    local p; for p in $(node_procs "$1"); do kill -KILL "$p" 2>/dev/null || true; done
    rm -f "$DIR/run/$1.daemon"
}
cmd_down()  { lock; stop_all; say "down"; }
cmd_status() {
    local d ok=0
    for d in munged slurmctld $(nodes 2>/dev/null); do alive "$d" && echo "$d: pid $(pid_of "$d")" || { echo "$d: not running"; ok=1; }; done
    [ $ok = 0 ] && sinfo -N -l || ok=1
    return $ok
}
cmd_env()   { echo "export SLURM_CONF=$SLURM_CONF"; }
cmd_crash() { lock; alive "$1" || die "$1 is not running"; node_stop "$1" KILL; say "$1 crashed; Slurm marks it DOWN in about $((NODE_TIMEOUT + 20)) s"; }
cmd_boot()  {
    lock; alive "$1" && die "$1 is running"; ISO=$(cat "$DIR/etc/isolation"); start_node "$1"
    # slurmctld may not have noticed the crash yet and still call the node idle: ask the daemon itself
    local port; port=$(sed -n "s/^NodeName=$1 .* Port=\([0-9]*\) .*/\1/p" "$SLURM_CONF")
    wait_for 30 eval "! port_free $port" || die "slurmd of $1 did not start"
    wait_for 60 usable "$1" || die "$1 did not come back"; say "$1 is back"
}

case ${1:-} in
    up) cmd_up "${2:-}" ;;
    down) cmd_down ;;
    status) cmd_status ;;
    env) cmd_env ;;
    crash) cmd_crash "${2:?node}" ;;
    boot) cmd_boot "${2:?node}" ;;
    *) sed -n '2,29p' "$0"; exit 2 ;;
esac
