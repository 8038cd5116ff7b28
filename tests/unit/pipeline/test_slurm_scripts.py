"""Batch scripts: what each kind of stage requests, and the text that a user reads."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.config.cluster_schema import SlurmCluster
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.restarts import STARTS, count_restart
from amnesia_bench.pipeline.run import threads_of
from amnesia_bench.pipeline.slurm import driver
from amnesia_bench.pipeline.slurm.driver import SlurmRun
from amnesia_bench.pipeline.slurm.script import batch_script, job_resources
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.layout import stage_path

STORE = Path("/scratch/my store")
KINDS = sorted(path.stem for path in (Path(__file__).parents[2] / "golden/sbatch").glob("*.sh"))


def job_of(*overrides: str):
    (job,) = load_jobs(["experiment=table1", "cluster=slurm", *overrides])
    return job


def cluster(*overrides: str) -> SlurmCluster:
    found = job_of(*overrides).config.cluster
    assert isinstance(found, SlurmCluster)
    return found


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    """One stage of each kind in Table 1 at full scale, without merges of parts."""
    job = job_of("profile.max_hours_per_evaluation=null")
    return {stage.kind: stage for stage in stages_of([build(job)])}


def test_a_training_takes_its_gpus_and_their_share_of_the_node(stages) -> None:
    mine = cluster("cluster.memory_gb_per_node=1000")
    wanted = job_resources(stages["trained"], 1, mine)
    assert (wanted.nodes, wanted.gpus, wanted.cpus, wanted.memory_gb) == (1, 8, 64, 1000)
    recall = job_resources(stages["recall"], 1, mine)
    assert (recall.nodes, recall.gpus, recall.cpus, recall.memory_gb) == (1, 1, 8, 125)
    data = job_resources(stages["data"], 1, mine)
    assert (data.nodes, data.gpus, data.cpus, data.memory_gb) == (1, 0, 1, 15)


def test_more_gpus_than_a_node_has_take_several_nodes(stages) -> None:
    large = replace(stages["trained"], gpus=16)
    wanted = job_resources(large, 1, cluster())
    assert (wanted.nodes, wanted.gpus) == (2, 8)
    with pytest.raises(UserError, match="16 GPUs cannot be divided equally among 6 nodes") as error:
        job_resources(large, 1, cluster("cluster.gpus_per_node=3"))
    assert "cluster.gpus_per_node" in str(error.value.hint)


def test_the_time_is_the_estimate_times_the_margin_and_at_most_the_limit(stages) -> None:
    stage = stages["trained"]
    free = cluster("cluster.time_limit_hours=1000", "cluster.save_seconds=1800")
    wanted = job_resources(stage, 1, free)
    assert wanted.estimated_hours is not None
    assert wanted.hours == pytest.approx(1.5 * wanted.estimated_hours + 1)
    short = cluster("cluster.time_limit_hours=0.5", "cluster.save_seconds=60")
    assert job_resources(stage, 1, short).hours == 0.5


def test_a_time_limit_that_is_too_short_is_said(stages, capsys) -> None:
    stage = stages["trained"]
    free = cluster("cluster.time_limit_hours=1000")
    estimated = job_resources(stage, 1, free).estimated_hours
    assert estimated is not None
    SlurmRun(STORE, [stage], {stage.id: 1}, free).print_time_limit_notes()
    assert capsys.readouterr().err == ""
    # The estimate is below the limit, and the estimate times its margin is not.
    close = cluster(f"cluster.time_limit_hours={1.2 * estimated}")
    SlurmRun(STORE, [stage], {stage.id: 1}, close).print_time_limit_notes()
    note = capsys.readouterr().err
    assert note.startswith(f"note: {stage.id}: estimated at {estimated:.1f} h")
    assert "times cluster.time_margin 1.5, above the cluster.time_limit_hours of" in note


def test_a_partition_that_allows_less_time_is_refused(monkeypatch, stages) -> None:
    stage = stages["trained"]
    gpu = cluster("cluster.partition=gpu", "cluster.time_margin=1000")
    jobs = SlurmRun(STORE, [stage], {stage.id: 1}, gpu)
    monkeypatch.setattr(driver, "time_limit_of", lambda partition: 24.0)
    jobs.check_partition()
    monkeypatch.setattr(driver, "time_limit_of", lambda partition: 12.0)
    with pytest.raises(UserError, match="requests 24 h, and the partition gpu allows 12 h") as said:
        jobs.check_partition()
    assert "Set cluster.time_limit_hours=12:" in str(said.value.hint)


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_of_each_kind_of_stage(stages, kind) -> None:
    """The text, without what other modules decide: names, threads and estimated hours."""
    stage = stages[kind]
    mine = cluster("cluster.memory_gb_per_node=1000", "cluster.python=/opt/python")
    wanted = replace(job_resources(stage, 1, mine), hours=3.5)
    after = ["11", "12"] if stage.inputs else []
    script = batch_script(STORE, stage, wanted, mine, after)
    script = script.replace(sys.executable, "PYTHON").replace(stage.id, f"{kind}.NAME")
    golden = Path(__file__).parents[2] / "golden" / "sbatch" / f"{kind}.sh"
    assert script == golden.read_text()


def test_every_kind_of_stage_has_a_golden_script(stages) -> None:
    assert set(stages) == set(KINDS)


def test_the_script_of_a_training_on_two_nodes_in_a_container(stages) -> None:
    stage = replace(stages["trained"], gpus=16)
    mine = cluster(
        "cluster.partition=gpu",
        "cluster.account=llm",
        "cluster.python=python3",
        "cluster.container=[apptainer,exec,--nv,my image.sif]",
        "cluster.setup=['module load cuda']",
        "cluster.options=['--mail-type=FAIL']",
    )
    wanted = job_resources(stage, 1, mine)
    script = batch_script(STORE, stage, wanted, mine, ["11", "12"])
    folder = f"/scratch/my store/stages/{stage.id}"
    minutes = next(line for line in script.splitlines() if "--time=" in line)
    assert (
        script
        == f"""\
#!/bin/bash
#SBATCH --job-name={stage.id}
#SBATCH '--comment=amnesia /scratch/my store'
#SBATCH '--output={folder}/slurm-%j.out'
#SBATCH --open-mode=append
{minutes}
#SBATCH --signal=B:USR1@600
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --dependency=afterok:11:12
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --partition=gpu
#SBATCH --account=llm
#SBATCH --mail-type=FAIL
#SBATCH --requeue
echo $SLURM_JOB_ID >> '{folder}/starts'  # the worker removes this file
if [ "$(wc -l < '{folder}/starts')" -gt 4 ]; then
    echo "4 starts did not come to their stage. Do the lines of cluster.setup end?" >&2
    exit 4
fi
module load cuda
{sys.executable} -P -m amnesia_bench.pipeline.worker --batch 3 \
--python 'apptainer exec --nv '"'"'my image.sif'"'"' python3' '/scratch/my store' {stage.id} &
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
        touch '{folder}/resubmit'
    fi
fi
exit $code
"""
    )


def _spec(stage: Stage) -> StageSpec:
    return StageSpec(
        id=stage.id, kind=stage.kind, front_door="", request={}, command=(), inputs={}, threads=1,
        gpus=0,
    )  # fmt: skip


def test_a_job_that_never_comes_to_its_worker_is_not_restarted_for_ever(stages, tmp_path) -> None:
    stage = stages["data"]
    mine = cluster("cluster.max_restarts=1", "cluster.setup=['exit 9']")
    wanted = job_resources(stage, 1, mine)
    script = batch_script(tmp_path, stage, wanted, mine, [])
    folder = stage_path(tmp_path, stage.id)
    folder.mkdir(parents=True)

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash"], input=script, capture_output=True, text=True)

    assert [start().returncode for _ in range(2)] == [9, 9]
    last = start()
    assert last.returncode == 4
    assert "2 starts did not come to their stage" in last.stderr
    count_restart(tmp_path, _spec(stage), 1)  # a worker that runs
    assert not (folder / STARTS).exists()


def test_every_script_of_table_1_is_valid_bash_and_waits_for_its_inputs() -> None:
    graph = stages_of([build(job_of())])
    scripts = SlurmRun(STORE, graph, threads_of(graph, 64), cluster()).scripts()
    assert scripts.keys() == {stage.id for stage in graph}
    for stage in graph:
        waits = [f"JOB_OF_{read.id}" for read in stage.inputs]
        line = f"#SBATCH --dependency=afterok:{':'.join(waits)}\n"
        assert (line in scripts[stage.id]) == bool(waits)
    everything = "\n".join(f"f{i}() {{\n{text}\n}}" for i, text in enumerate(scripts.values()))
    subprocess.run(["bash", "-n"], input=everything, text=True, check=True)


def run_script(tmp_path: Path, worker: str, scontrol: str):
    """Run the script of a stage with these stand-ins for its worker and for scontrol."""
    (stage, *_) = stages_of([build(job_of("profile=smoke"))])
    mine = cluster()
    script = batch_script(tmp_path, stage, job_resources(stage, 1, mine), mine, [])
    (line,) = [text for text in script.splitlines() if text.endswith(" &")]
    script = script.replace(line, f"({worker}) &").replace("sleep 60", "true")
    (tmp_path / "stages" / stage.id).mkdir(parents=True)
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho scontrol $*\n{scontrol}\n")
    (tmp_path / "scontrol").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash"], input=script, text=True, capture_output=True, env=environment, timeout=60
    )
    return done, (tmp_path / "stages" / stage.id / "resubmit").exists()


_SIGNALLED = "trap 'exit 75' USR1; sleep 0.5; kill -USR1 $$; sleep 20 & wait"


@pytest.mark.parametrize(
    ("worker", "scontrol", "said", "code", "resubmit"),
    [
        ("exit 0", "", "", 0, False),
        ("exit 4", "", "", 4, False),
        ("exit 75", "", "scontrol requeue 7", 75, False),
        ("exit 75", "exit 1", "scontrol requeue 7", 75, True),
        ("kill -USR1 $BASHPID; sleep 1", "", "scontrol requeue 7", 138, False),
        # The signal that SLURM sends before the time limit reaches the worker, which then saves.
        (
            "trap 'exit 75' USR1; sleep 0.5; kill -USR1 $$; sleep 20 & wait",
            "",
            "requeue 7",
            75,
            False,
        ),
    ],
)
def test_a_job_that_saved_its_state_is_requeued(
    tmp_path, worker, scontrol, said, code, resubmit
) -> None:
    done, marked = run_script(tmp_path, worker, scontrol)
    assert (done.returncode, marked) == (code, resubmit)
    assert said in done.stdout
    assert bool(done.stdout) == bool(said)
