#!/usr/bin/env bash
# One Ray cluster for the length of one job under SLURM: a head on the first node, a worker on each other node.
#
#   sbatch --nodes=4 --cpus-per-task=16 --gpus-per-task=2 cluster/slurm.sh \
#       python workflows/pretrain.py --config rckd --slides '/data/slides/*.svs' --run_folder /scratch/runs/rckd
#
# Run it from the checkout, on a file system that every node sees, with the project's environment activated. The same command
# resumes an interrupted run; after a preemption or a lost node, --requeue gives it again by itself. Two minutes before the job's
# end, or its preemption, SLURM warns this script with SIGTERM (--signal below; SIGUSR1 does as well): the command is told, commits
# a checkpoint and ends. To stop a job like that: `scancel --batch --signal=TERM JOB`, not `scancel JOB`, which ends Ray with it.
#SBATCH --job-name=csat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=csat-%j.log
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch [options] cluster/slurm.sh COMMAND…" >&2
    exit 2
fi
: "${SLURM_JOB_ID:?run this under sbatch}" "${SLURM_CPUS_PER_TASK:?give sbatch --cpus-per-task}"
wait_s=300 driver_s=40

# Steps do not inherit --cpus-per-task since SLURM 22.05.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# Ports of this job's own, for another job may have its Ray on the same node. Ray picks the others, free ones.
base=$((20000 + SLURM_JOB_ID % 2000 * 4))
gcs_port=$base dashboard_port=$((base + 1)) client_port=$((base + 2))

# A token of this job's own, readable by its user only; its path, not the token, is in the environment.
token=$(mktemp -d "$HOME/.csat-ray-XXXXXX")
(umask 077 && od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token/auth_token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token/auth_token" RAY_raylet_start_wait_time_s=$wait_s

temp=/tmp/ray-$SLURM_JOB_ID # short: Ray puts sockets below it
steps=()
stop() {
    local status=$?
    trap - EXIT TERM INT USR1
    if [[ -n ${driver:-} ]] && kill -TERM "$driver" 2>/dev/null; then
        for ((waited_s = 0; waited_s < driver_s; waited_s++)); do # it commits a checkpoint, for which it needs Ray
            kill -0 "$driver" 2>/dev/null || break
            sleep 1
        done
        kill -KILL "$driver" 2>/dev/null || true
    fi
    for step in "${steps[@]}"; do kill "$step" 2>/dev/null || true; done # SLURM ends every process of a step
    for step in "${steps[@]}"; do wait "$step" 2>/dev/null || true; done
    rm -rf "$token"
    if ((status == 0)); then
        srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$temp" || true
    else
        echo "ended with $status; Ray's logs are in $temp on ${nodes[*]}" >&2
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 143' TERM USR1
trap 'exit 130' INT

common=(--block --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats
    --dashboard-agent-listen-port 0 --min-worker-port 0 --max-worker-port 0)
[[ -z ${OBJECT_STORE_BYTES:-} ]] || common+=(--object-store-memory "$OBJECT_STORE_BYTES")

# As Ray sees it: the host name may stand for loopback, which other nodes cannot reach.
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    python -c "import ray.util; print(ray.util.get_node_ip_address())")
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address "$address" --port "$gcs_port" --temp-dir "$temp" \
    --ray-client-server-port "$client_port" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard_port" "${common[@]}" &
steps+=($!)

# Workers may start only when the head is registered; the run only when all of them are.
wait_for_nodes() {
    python - "$address:$gcs_port" "$1" "$wait_s" <<'EOF'
import sys, time
import ray
address, wanted, deadline = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
while True:
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        break
    except Exception as error:
        if time.monotonic() > deadline:
            sys.exit(f"Ray's head does not answer at {address}: {error}")
        time.sleep(2)
while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {wanted} nodes came")
    time.sleep(2)
EOF
}
wait_for_nodes 1
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --overlap --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$head" \
        ray start --address "$address:$gcs_port" "${common[@]}" &
    steps+=($!)
fi
wait_for_nodes "$SLURM_JOB_NUM_NODES"

RAY_ADDRESS="$address:$gcs_port" "$@" &
driver=$!
wait "$driver"
