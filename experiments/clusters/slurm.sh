#!/bin/bash
# Trains SegNet on CamVid on several nodes of eight GPUs:  sbatch experiments/clusters/slurm.sh
#
# The protocol is the one whose batch is four images on each GPU; others mean a step's (README.md).
#
# One process a node, which takes all the node's GPUs; segnet_jax finds from SLURM which is which. DATA and RUN lie on a
# file system that all nodes see. A stopped, preempted or failed job is put into the queue again and goes on where it was:
# the same command, the same --run.

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
