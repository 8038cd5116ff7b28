"""Start a training on all nodes of a batch job, with one torchrun agent per node."""

from __future__ import annotations

import os
import socket

# torchrun's agents meet at a port that depends on the job, so that jobs on one node do not collide.
_FIRST_PORT, _PORTS = 20_000, 20_000


def srun_words(nodes: int, gpus: int) -> list[str]:
    """Return the words that run a command once on each node of this job.

    Args:
        nodes: number of nodes of the job.
        gpus: number of GPUs per node; 0 for a training on CPUs.
    """
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    words += ["--kill-on-bad-exit=1", "--export=ALL"]
    # Without this option, a step gets one CPU per task since SLURM 22.05.
    words += [f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}"]
    return [*words, f"--gpus-per-node={gpus}"] if gpus else words


def rendezvous_words(nodes: int, gpus: int) -> list[str]:
    """Return torchrun's options for agents that meet on this node, the first of the job."""
    job = os.environ["SLURM_JOB_ID"]
    port = _FIRST_PORT + int(job) % _PORTS
    return [
        *("--nnodes", str(nodes), "--nproc-per-node", str(max(1, gpus))),
        *("--rdzv-backend", "c10d", "--rdzv-id", job),
        *("--rdzv-endpoint", f"{socket.gethostname()}:{port}"),
    ]
