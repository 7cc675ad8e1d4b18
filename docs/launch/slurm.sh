#!/usr/bin/env bash
# A run on GPUs under Slurm: sbatch [--nodes=N] docs/launch/slurm.sh --config=configs/voc92.py --workdir=/shared/runs/voc92
#
# One process for each GPU, on one node or several; JAX recognizes Slurm. Set --gpus-per-node and --ntasks-per-node to the
# same number. Submit it in a checkout with a .venv that all nodes see; the workdir and config.ovs.labels_dir are on shared
# storage, too. At the time limit and at preemption, Slurm sends SIGTERM: the run saves a checkpoint and ends with status
# 143, and the job is queued again.
#SBATCH --job-name=semiovs
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

python=${PYTHON:-.venv/bin/python}
[[ -x $python ]] || { echo "error: $python: missing; submit the job in the checkout, or set PYTHON" >&2; exit 2; }
[[ $# -gt 0 ]] || { echo "error: no flags; add --config=... --workdir=..." >&2; exit 2; }

# Compiled programs and the choices of XLA's autotuner are kept between starts.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/semiovs_jax/programs}

steps='' signaled=''
pass_on() {
  [[ -n $signaled && -n $steps ]] || return 0
  signaled=''
  kill -TERM "$steps"
}
trap 'signaled=yes; pass_on' TERM # a signal may reach the batch script alone, also before it knows its steps
srun --kill-on-bad-exit=0 "$python" -m semiovs_jax.main --distributed "$@" &
steps=$!
pass_on
wait "$steps"
status=$?
while kill -0 "$steps" 2>/dev/null; do # the trap has ended the wait
  wait "$steps"
  status=$?
done

if [[ $status -eq 143 && ${SLURM_RESTART_COUNT:-0} -lt ${MAX_RESTARTS:-100} ]]; then
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$status"
