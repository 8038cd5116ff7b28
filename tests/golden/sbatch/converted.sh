#!/bin/bash
#SBATCH --job-name=converted.NAME
#SBATCH '--comment=amnesia /scratch/my store'
#SBATCH '--output=/scratch/my store/stages/converted.NAME/slurm-%j.out'
#SBATCH --open-mode=append
#SBATCH --time=210
#SBATCH --signal=B:USR1@600
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=15G
#SBATCH --dependency=afterok:11:12
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
echo $SLURM_JOB_ID >> '/scratch/my store/stages/converted.NAME/starts'  # the worker removes this file
if [ "$(wc -l < '/scratch/my store/stages/converted.NAME/starts')" -gt 4 ]; then
    echo "4 starts did not come to their stage. Do the lines of cluster.setup end?" >&2
    exit 4
fi
PYTHON -P -m amnesia_bench.pipeline.worker --batch 3 --python /opt/python '/scratch/my store' converted.NAME &
worker=$!
trap 'kill -USR1 $worker 2>/dev/null' USR1  # the time limit is near
trap 'kill -TERM $worker 2>/dev/null' TERM  # cancelled or preempted
while kill -0 $worker 2>/dev/null; do wait $worker; done  # a signal ends `wait` early
wait $worker
code=$?
if [ $code = 75 ] || [ $code = 138 ]; then
    if scontrol requeue $SLURM_JOB_ID; then
        sleep 60  # SLURM ends this script
    else
        touch '/scratch/my store/stages/converted.NAME/resubmit'
    fi
fi
exit $code
