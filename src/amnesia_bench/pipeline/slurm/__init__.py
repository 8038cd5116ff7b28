"""Run stages as SLURM jobs: one job per stage; SLURM keeps the order of dependent jobs."""
