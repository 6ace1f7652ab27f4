#!/bin/bash
# Conversion by an array of jobs, a shard each:
#
#   sbatch --array=0-63 deploy/convert-slurm.sh SOURCE OUT.beton [option of fastclr convert …]
#
# SOURCE and OUT.beton lie in folders that all nodes share.  The last job to end writes the index, OUT.json.  Jobs that
# failed, or all of them: submit the same line again, and it writes the shards that are missing.  An array of some of
# the numbers needs SHARDS: SHARDS=64 sbatch --array=3,17 …
#SBATCH --job-name=fastclr-convert
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=fastclr-convert-%A-%a.log
set -euo pipefail

if [ $# -lt 2 ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "usage: sbatch --array=0-63 deploy/convert-slurm.sh SOURCE OUT.beton [option …]" >&2
    exit 2
fi

exec fastclr convert "$@" --shards "${SHARDS:-$((SLURM_ARRAY_TASK_MAX + 1))}" --shard "$SLURM_ARRAY_TASK_ID" --resume \
    --workers "${SLURM_CPUS_PER_TASK:-1}"
