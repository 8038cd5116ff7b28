"""Write the batch script of a stage.

The script is bash, because it runs outside of any container, where `scontrol` exists. It starts the
worker of the stage and passes signals on to it. If the worker saves its state and stops before the
job's time limit (exit code 75), the script puts the job back into the queue under the same number,
so that dependent jobs keep waiting for it. If the job never comes to its worker, for example
because `cluster.setup` does not end before the time limit, it fails after `cluster.max_restarts`
restarts.
"""

from __future__ import annotations

import math
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.config.cluster_schema import SlurmCluster
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.stage_cost import cost_of
from amnesia_bench.costs.work import at_most
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.pipeline.environments import python_words
from amnesia_bench.pipeline.restarts import STARTS
from amnesia_bench.pipeline.slurm.endings import output_of_job
from amnesia_bench.pipeline.slurm.jobs import comment_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.layout import stage_path

# The time of a stage without an estimate, which builds data, prompts or scores on CPUs.
_CPU_STAGE_HOURS = 12.0
_SHORTEST_HOURS = 0.5
# The script creates this file if SLURM refuses to requeue its job; the driver then submits it.
RESUBMIT = "resubmit"


@dataclass(frozen=True, kw_only=True)
class JobResources:
    """What a job requests from SLURM.

    Attributes:
        nodes: number of nodes, each with one task.
        gpus, cpus, memory_gb: per node; `memory_gb` is None to use the cluster's default.
        hours: the time limit.
        estimated_hours: the estimated run time; None without an estimate.
    """

    nodes: int
    gpus: int
    cpus: int
    memory_gb: int | None
    hours: float
    estimated_hours: float | None


def job_resources(stage: Stage, threads: int, cluster: SlurmCluster) -> JobResources:
    """Return what the job of a stage requests.

    Args:
        stage: the stage.
        threads: number of CPU threads of the stage.
        cluster: the cluster.

    Raises:
        UserError: the GPUs of the stage cannot be divided equally among nodes.
    """
    nodes = max(1, math.ceil(stage.gpus / cluster.gpus_per_node))
    if stage.gpus % nodes:
        raise UserError(
            f"{stage.id}: {stage.gpus} GPUs cannot be divided equally among {nodes} nodes with "
            f"{cluster.gpus_per_node} GPUs each",
            hint="Choose a multiple: profile.gpus=N, or set cluster.gpus_per_node=N.",
        )
    gpus = stage.gpus // nodes
    share = cluster.cpus_per_node * gpus // cluster.gpus_per_node
    cpus = min(cluster.cpus_per_node, max(threads, share, 1))
    part = max(gpus / cluster.gpus_per_node, cpus / cluster.cpus_per_node)
    memory = cluster.memory_gb_per_node
    estimated = None
    if stage.gpus:
        longest = cost_of(at_most(stage.work), stage.gpus, GPUS[cluster.gpu])
        estimated = longest.gpu_hours / stage.gpus
    hours = _CPU_STAGE_HOURS if estimated is None else estimated * cluster.time_margin
    # The state is saved before the limit, and starting takes time, too.
    hours = max(hours + 2 * cluster.save_seconds / 3600, _SHORTEST_HOURS)
    return JobResources(
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
        memory_gb=None if memory is None else max(1, math.floor(part * memory)),
        hours=min(hours, cluster.time_limit_hours),
        estimated_hours=estimated,
    )


def batch_script(
    store: Path, stage: Stage, resources: JobResources, cluster: SlurmCluster, after: Sequence[str]
) -> str:
    """Return the batch script that runs a stage.

    Args:
        store: the folder of all artifacts, shared by all nodes.
        stage: the stage, whose spec is in the store.
        resources: what the job requests.
        cluster: the cluster.
        after: the numbers of the jobs whose success the job needs.
    """
    folder = stage_path(store, stage.id)
    options = {**_options(store, stage, resources, cluster, after), **_placement(cluster)}
    lines = [f"#SBATCH {shlex.quote(f'--{name}={value}')}" for name, value in options.items()]
    lines += [f"#SBATCH {shlex.quote(word)}" for word in cluster.options]
    start = [sys.executable, "-P", "-m", "amnesia_bench.pipeline.worker"]
    start += ["--batch", str(cluster.max_restarts)]
    start += ["--python", shlex.join(python_words(stage, cluster))]
    return _TEMPLATE.format(
        directives="\n".join(lines),
        setup="".join(f"{line}\n" for line in cluster.setup),
        worker=shlex.join([*start, str(store), stage.id]),
        requeue=int(ExitCode.REQUEUE),
        killed=128 + signal.SIGUSR1,  # the worker was still starting
        marker=shlex.quote(str(folder / RESUBMIT)),
        starts=shlex.quote(str(folder / STARTS)),
        most=cluster.max_restarts + 1,
        failed=int(ExitCode.STAGE_FAILED),
    )


def _options(
    store: Path, stage: Stage, resources: JobResources, cluster: SlurmCluster, after: Sequence[str]
) -> Mapping[str, object]:
    minutes = math.ceil(60 * resources.hours)
    options: dict[str, object] = {
        "job-name": stage.id,
        "comment": comment_of(store),
        "output": output_of_job(store, stage.id, "%j"),
        "open-mode": "append",  # a requeued job would otherwise truncate its output
        "time": minutes,
        "signal": f"B:USR1@{cluster.save_seconds}",
        "nodes": resources.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus,
    }
    if resources.gpus:
        options["gpus-per-node"] = resources.gpus
    if resources.memory_gb is not None:
        options["mem"] = f"{resources.memory_gb}G"
    if after:
        options |= {"dependency": "afterok:" + ":".join(after), "kill-on-invalid-dep": "yes"}
    return options


def _placement(cluster: SlurmCluster) -> Mapping[str, str]:
    names = ("partition", "account", "qos", "constraint", "reservation")
    values = {name: getattr(cluster, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


_TEMPLATE = """\
#!/bin/bash
{directives}
#SBATCH --requeue
echo $SLURM_JOB_ID >> {starts}  # the worker removes this file
if [ "$(wc -l < {starts})" -gt {most} ]; then
    echo "{most} starts did not come to their stage. Do the lines of cluster.setup end?" >&2
    exit {failed}
fi
{setup}{worker} &
worker=$!
trap 'kill -USR1 $worker 2>/dev/null' USR1  # the time limit is near
trap 'kill -TERM $worker 2>/dev/null' TERM  # cancelled or preempted
while kill -0 $worker 2>/dev/null; do wait $worker; done  # a signal ends `wait` early
wait $worker
code=$?
if [ $code = {requeue} ] || [ $code = {killed} ]; then
    if scontrol requeue $SLURM_JOB_ID; then
        sleep 60  # SLURM ends this script
    else
        touch {marker}
    fi
fi
exit $code
"""
