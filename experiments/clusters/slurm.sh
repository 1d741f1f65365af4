#!/bin/bash
# Train SegNet on CamVid on several nodes of eight GPUs:  sbatch experiments/clusters/slurm.sh
#
# This protocol's batch is four images per GPU; other protocols have a fixed global batch (README.md).
#
# One process per node uses all GPUs of the node; segnet_jax detects SLURM. DATA and RUN must be on a file system that all
# nodes share. A stopped, preempted or failed job is requeued and resumes with the same command and the same --run.

#SBATCH --job-name=segnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=segnet-%j.log

DATA=${DATA:-$HOME/CamVid}
RUN=${RUN:-$HOME/runs/camvid-$SLURM_JOB_ID}

# --kill-on-bad-exit=0: the processes end one another by themselves, process 0 perhaps while it still saves.
srun --kill-on-bad-exit=0 python -m segnet_jax.train --protocol camvid-matlab-2018 --data "$DATA" \
  --devices all --run "$RUN"
code=$?

# 143: SIGTERM, the time is up. 8: a process was lost. 137: this is the one that was killed. All else is for a person.
case $code in
  8 | 137 | 143) [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
