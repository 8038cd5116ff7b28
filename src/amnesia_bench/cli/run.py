"""Run all stages of an experiment that are not done, then write its report.

  amnesia run experiment=table1
  amnesia run experiment=table1,table4 profile=tiny profile.seeds=[0,1,2]
  amnesia run experiment=table4 restore=qk,qk_blend,qk_low_rank

Several values of a key (KEY=A,B) select several jobs; stages that jobs share are run only once. To
resume an interrupted run, run the same command again: finished stages are skipped. `amnesia plan`
estimates the cost, and `amnesia status` shows the progress.

On a SLURM cluster, with one job per stage:

  amnesia run experiment=table1 cluster=slurm cluster.partition=gpu --dry-run
  amnesia run experiment=table1 cluster=slurm cluster.partition=gpu
  amnesia run experiment=table1 cluster=mine.yaml --detach

The jobs do not need this process: if it ends, the same command finds them and waits for them.
`amnesia cancel` cancels them.

With tracking=wandb or tracking=trackio, finished stages, table rows and reports are also copied to
W&B or trackio; see `amnesia track --help`.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli import report
from amnesia_bench.cli.output import say
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.requests.experiments import JobScriptsRequest, RunRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="experiments and overrides; see above",
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for reports (default: results)"
    )
    parser.add_argument(
        "--repair", action="store_true", help="remove damaged artifacts and rebuild them"
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="submit the jobs to SLURM, as many as it accepts, and do not wait for them",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the batch scripts, and submit nothing"
    )


def run(args: argparse.Namespace) -> ExitCode:
    overrides = tuple(args.overrides)
    if args.dry_run:
        scripts = amnesia_bench.job_scripts(
            JobScriptsRequest(overrides=overrides, store=args.store)
        )
        for stage, script in scripts.items():
            say(f"# {stage}\n{script}")
        return ExitCode.DONE
    result = amnesia_bench.run(
        RunRequest(
            overrides=overrides,
            store=args.store,
            results=args.out,
            repair=args.repair,
            detach=args.detach,
        )
    )
    outcome = result.outcome
    if outcome.submitted is not None:
        if outcome.without_job:
            say(_without_job(args, outcome.without_job))
        say("`amnesia status` shows the jobs. Run the same command again to write the report.")
        return ExitCode.DONE
    others = f", {outcome.by_others} run by other processes" if outcome.by_others else ""
    stages = outcome.cached + outcome.done + outcome.by_others
    say(f"{stages} stages: {outcome.cached} cached, {outcome.done} run now{others}.")
    for page in result.pages:
        if page.report is None:
            say(f"Report: {page.out}, unchanged.")
            continue
        if page.edited:
            names = ", ".join(page.edited)
            say(f"Files changed or removed since they were written: {names}. Writing them again:")
        report.print_report(page.report, page.files[-1])
    return ExitCode.DONE


def _without_job(args: argparse.Namespace, stages: int) -> str:
    """Return what to type so that the stages are submitted for which the queue had no place."""
    folders = [f"--out={args.out}", *([f"--store={args.store}"] if args.store else [])]
    command = shlex.join(["amnesia", "run", *args.overrides, *folders])
    return (
        f"{counted(stages, 'stage')} without a job: your queue is full, and with --detach nothing "
        "waits until it has places. Run the same command again later, or leave a process that "
        f"submits the others and writes the report:\n  nohup {command} > amnesia.log 2>&1 &"
    )
