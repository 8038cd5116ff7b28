"""The Python of stages with vLLM is checked before anything starts."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from amnesia_bench.config.cluster_schema import LocalCluster
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.pipeline.environments import check_environments, python_words
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.slurm.script import batch_script, job_resources
from amnesia_bench.pipeline.stage import Stage, whole_of

JOB = ("experiment=table1", "profile=smoke", "profile.engine=vllm")
PARTS = "profile.max_hours_per_evaluation=1e-9"


def of_kind(kind: str, *overrides: str) -> list[Stage]:
    stages = stages_of(build(job) for job in load_jobs([*JOB, *overrides]))
    return [stage for stage in stages if stage.kind == kind]


def local(python: Path | str) -> LocalCluster:
    return LocalCluster(kind="local", vllm_python=str(python))


def answering_as(python: Path, output: str) -> Path:
    python.write_text(f"#!/bin/sh\necho {shlex.quote(output)}\n")
    python.chmod(0o755)
    return python


def test_only_stages_that_answer_with_vllm_use_its_python() -> None:
    parts = of_kind("answers", PARTS)
    assert {whole_of(stage.id) is None for stage in parts} == {True, False}
    for stage in [*parts, *of_kind("trained"), *of_kind("scores")]:
        answers = stage.kind == "answers" and whole_of(stage.id) is not None
        expected = "/opt/vllm" if answers else sys.executable
        assert python_words(stage, local("/opt/vllm")) == [expected]


@pytest.mark.parametrize(
    ("version", "missing", "said"),
    [
        ("0.1.0", ["lm_eval", "vllm"], "lacks lm_eval, vllm"),
        ("0.0.9", [], "has amnesia-bench 0.0.9, and this is"),
    ],
)
def test_a_python_that_lacks_something_is_refused(
    tmp_path: Path, version: str, missing: list[str], said: str
) -> None:
    python = answering_as(tmp_path / "python", json.dumps([version, missing]))
    with pytest.raises(MissingEnvironmentError, match=said):
        check_environments(of_kind("answers"), local(python))
    check_environments(of_kind("scores"), local(python))


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    for python in (tmp_path / "absent", answering_as(tmp_path / "python", "hello")):
        with pytest.raises(MissingEnvironmentError, match="is not a Python that runs"):
            check_environments(of_kind("recall"), local(python))


def test_a_job_with_vllm_runs_in_its_python(tmp_path: Path) -> None:
    names = ("cluster=slurm", "cluster.python=/opt/python", "cluster.vllm_python=/opt/vllm")
    options = (*names, "cluster.container=[apptainer, exec, image.sif]")
    (job,) = load_jobs([*JOB, *options])
    cluster = job.config.cluster
    assert not isinstance(cluster, LocalCluster)
    check_environments(of_kind("answers"), cluster)  # a container is not looked into
    for kind, python in (("answers", "/opt/vllm"), ("scores", "/opt/python")):
        stage = of_kind(kind)[0]
        script = batch_script(tmp_path, stage, job_resources(stage, 1, cluster), cluster, [])
        assert f"--python 'apptainer exec image.sif {python}'" in script
