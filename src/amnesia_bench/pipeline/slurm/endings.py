"""Explain why a job does not run, or how it ended without finishing its stage."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.pipeline.restarts import STARTS
from amnesia_bench.pipeline.slurm.jobs import SlurmJob
from amnesia_bench.store.layout import stage_path

# Reasons for which jobs wait for a time, and which need nothing of the user.
_USUAL_REASONS = ("None", "Priority", "Resources", "Dependency", "BeginTime", "Cleaning", "Prolog")
_LINES = 4


def output_of_job(store: Path, stage_id: str, number: str) -> Path:
    """Return the file into which SLURM writes the output of a stage's job."""
    return stage_path(store, stage_id) / f"slurm-{number}.out"


def unusual_reason(job: SlurmJob) -> str | None:
    """Return why a pending job may wait for ever, in SLURM's words; None if it just waits."""
    reason = job.reason.partition(",")[0]
    return None if job.state != "PENDING" or reason in _USUAL_REASONS else reason


def explain_ending(store: Path, job: SlurmJob) -> str:
    """Return a message about a job that ended although its stage is not done."""
    message = f"{job.stage}: job {job.id} ended as {job.state}."
    output = output_of_job(store, job.stage, job.id)
    if job.nodes and not output.is_file():  # SLURM creates it before it starts the script
        return (
            f"{message} It ran on {job.nodes}, and its output is not in {output.parent}: do all "
            "nodes share this folder? Choose a store that they do: --store or $AMNESIA_STORE."
        )
    lines = [message]
    if job.state == "COMPLETED":
        lines.append("Its artifact has not appeared in the store.")
    if job.state == "OUT_OF_MEMORY":
        lines.append("Increase cluster.memory_gb_per_node.")
    if (output.parent / STARTS).is_file():
        lines.append("It had not come to its stage: it was in cluster.setup, or starting Python.")
    if output.is_file():
        lines += output.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
    return "\n".join(lines)
