#!/usr/bin/env bash
# Two Ray nodes on this machine, each at an address of its own on loopback, until Ctrl-C.
#
#   cluster/local/two_nodes.sh
#
# It prints the lines that submit a job from another terminal. Only processes started here are stopped at the end.
# CPUS (of each node), GCS_PORT, DASHBOARD_PORT and OBJECT_STORE_BYTES (of each node) may be set in the environment.
set -euo pipefail

cpus=${CPUS:-2}
gcs_port=${GCS_PORT:-6379}
dashboard_port=${DASHBOARD_PORT:-8265}
store_bytes=${OBJECT_STORE_BYTES:-500000000}
wait_s=180

# Short: Ray puts sockets below it, and a socket's path may have 107 characters.
folder=$(mktemp -d /tmp/csat-ray-XXXXXX)
nodes=()
stop() {
    trap - EXIT INT TERM
    for signal in TERM KILL; do
        for node in "${nodes[@]}"; do kill -s "$signal" -- "-$node" 2>/dev/null || true; done
        for _ in 1 2 3 4 5; do # Ray needs some seconds to end its processes
            living=0
            for node in "${nodes[@]}"; do ! kill -0 -- "-$node" 2>/dev/null || living=1; done
            ((living)) || break 2
            sleep 1
        done
    done
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A token of its own for this cluster, readable by this user only.
(umask 077 && od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' >"$folder/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token"
export RAY_raylet_start_wait_time_s=$wait_s # a busy machine needs longer than the usual 30 s

# Starts a node in a process group of its own and waits until it says that it runs.
start_node() {
    local log=$folder/$1.log waited_s=0
    shift
    setsid ray start --block "$@" --num-cpus "$cpus" --object-store-memory "$store_bytes" --disable-usage-stats \
        --dashboard-agent-listen-port 0 --min-worker-port 0 --max-worker-port 0 >"$log" 2>&1 &
    nodes+=($!)
    until grep -q "Ray runtime started" "$log"; do
        if ! kill -0 "${nodes[-1]}" 2>/dev/null || ((waited_s++ >= wait_s)); then
            cat "$log" >&2
            echo "ray start did not succeed within $wait_s s (are ports $gcs_port and $dashboard_port free?)" >&2
            exit 1
        fi
        sleep 1
    done
}

start_node first --head --node-ip-address 127.0.0.2 --port "$gcs_port" --temp-dir "$folder/ray" \
    --dashboard-host 127.0.0.1 --dashboard-port "$dashboard_port"
start_node second --address "127.0.0.2:$gcs_port" --node-ip-address 127.0.0.3

cat <<EOF
Two nodes of $cpus CPUs are running. In another terminal:

  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
  ray job submit --address http://127.0.0.1:$dashboard_port --working-dir . -- \\
      python workflows/pretrain.py --config demo --run_folder /tmp/runs/demo

Logs are in $folder. Ctrl-C stops both nodes.
EOF
wait -n "${nodes[@]}" || true # neither ends before it is told to
tail -n 20 "$folder"/*.log >&2
echo "a node ended by itself" >&2
exit 1
