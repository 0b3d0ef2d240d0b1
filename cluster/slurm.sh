#!/usr/bin/env bash
# Train on the GPUs of a SLURM cluster, from the folder of this checkout on a shared disk:
#
#   sbatch --nodes=4 cluster/slurm.sh --config=configs/gpt2.py:124m --workdir=/shared/runs/gpt2
#
# Whatever sbatch takes overrides the lines below. JAX finds the other processes by itself.
#SBATCH --job-name=bigjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# One task per GPU, and every task sees all GPUs of its node (so not --gpus-per-task): JAX takes the
# one of its own, and NCCL reaches the others. SIGTERM comes to the tasks 300 s before the end of
# the time, and whenever SLURM preempts: bigjax saves and leaves with 75.
set -euo pipefail

max_crashes=${MAX_CRASHES:-3}
crashes_file=slurm-${SLURM_JOB_ID}.crashes # outlives a requeue

environment() {
  export JAX_OPTIMIZATION_LEVEL=O1 XLA_PYTHON_CLIENT_MEM_FRACTION=.9 NCCL_NVLS_ENABLE=1
  case $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) in
    *H100* | *H200*) export CUDA_DEVICE_MAX_CONNECTIONS=1 ;; # slower on Blackwell
  esac
}

train() {
  # --kill-on-bad-exit=0: the others have a checkpoint to finish, and end by themselves.
  srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "${BIGJAX:-.venv/bin/bigjax}" train "$@"
}

# 0 done; 75 preempted and saved, again; 78 config or data error and 70 diverged, stop; any other,
# again a bounded number of times.
after() {
  case $1 in
    0 | 70 | 78) exit "$1" ;;
    75) requeue "$1" ;;
    *)
      echo x >>"$crashes_file"
      (($(wc -l <"$crashes_file") <= max_crashes)) || exit "$1"
      requeue "$1"
      ;;
  esac
}

requeue() {
  echo "exit code $1: to the queue again"
  scontrol requeue "$SLURM_JOB_ID"
  exit "$1"
}

trap : TERM # this shell stays to see how the tasks end
environment
exit_code=0
train "$@" || exit_code=$?
after "$exit_code"
