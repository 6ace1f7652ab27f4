#!/usr/bin/env bash
# Training on the nodes of a Slurm cluster; every node sees the same file and run folder.
#
#   sbatch --nodes 4 deploy/slurm.sh RECIPE FILE.beton RUN_DIR [--section.key value …]
#
# Two minutes before the time is up the ranks save and the job goes back into the queue; so it does where the
# cluster's PreemptMode is REQUEUE.  The run folder holds the run: a job that was requeued continues it.  scancel ends
# it; to continue later, submit the same line again.
#SBATCH --job-name=fastclr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=fastclr-%j.log
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: sbatch deploy/slurm.sh RECIPE FILE.beton RUN_DIR [--section.key value …]" >&2
    exit 2
fi
recipe=$1 file=$2 run=$3
shift 3

# the nodes meet at the first of them; the port is the job's own, for jobs that share a node
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000))

# or the ranks of a restarted job could find the addresses of dead ones
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# one torchrun per node, which starts a rank per GPU; a rank that dies restarts all of them from the checkpoint
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=gpu --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID" \
    --no-python fastclr train "$recipe" "$file" --out "$run" "$@" &
srun_pid=$!

# The ranks save on SIGTERM, and agree on a step for it.  srun can't hand it on (it ends the step with SIGKILL), so
# Slurm is asked to send it to the step.  On scancel and preemption Slurm does so by itself: nothing to do then but
# to wait.
requeue='' signalled=''
trap 'requeue=1; signalled=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
trap 'signalled=1' TERM INT

# a trapped signal ends `wait`, not srun
while true; do
    signalled=''
    wait "$srun_pid" && status=0 || status=$?
    [ -n "$signalled" ] || break
done
if [ -n "$requeue" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
