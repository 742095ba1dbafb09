#!/usr/bin/env bash
# One run on several nodes, one process a GPU; resubmits itself where it was interrupted:
#   sbatch launch/slurm.sh --config=configs/lunet_bilevel.py:paper \
#     --config.data.directory=TILES --workdir=/shared/runs/NAME
# Set the number of nodes and the partition by sbatch's own flags. TILES and the workdir must be
# seen by all nodes. tvjax finds the other processes by SLURM's variables.
#SBATCH --job-name=tvjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -u
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

# SIGTERM comes to all processes three minutes before the end of the allotted time, or when the job
# is preempted. They save at the same step and end with status 75. 134: a process was lost, and the
# others were ended; 74: a disk or the network failed. Those may pass, but not for ever.
srun --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "${PYTHON:-.venv/bin/python}" -m tvjax.main "$@"
status=$?
if ((status == 75 || ((status == 74 || status == 134) && ${SLURM_RESTART_COUNT:-0} < 20))); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
