"""Choose the Python that runs each stage: vLLM pins other packages than training needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable

import amnesia_bench
from amnesia_bench.config.cluster_schema import LocalCluster, SlurmCluster
from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.answering import AnsweringRequest

_PROBE = """\
import json
from importlib.util import find_spec
found = {name: find_spec(name) is not None for name in ("amnesia_bench", "lm_eval", "vllm")}
version = None
if found["amnesia_bench"]:
    from amnesia_bench import __version__ as version
print(json.dumps([version, [name for name in found if not found[name]]]))
"""
_PROBE_SECONDS = 120
_HINT = (
    'Install vLLM in an environment of its own: pip install "amnesia-bench[eval,vllm]". Then name '
    "its Python: cluster.vllm_python=PATH"
)


def runs_vllm(stage: Stage) -> bool:
    """Return whether a stage runs vLLM."""
    return isinstance(stage.request, AnsweringRequest) and stage.request.runs_vllm


def python_words(stage: Stage, cluster: LocalCluster | SlurmCluster) -> list[str]:
    """Return the words that start the Python of a stage, for example in a container."""
    python = cluster.vllm_python if runs_vllm(stage) else None
    if isinstance(cluster, SlurmCluster):
        return [*cluster.container, python or cluster.python or sys.executable]
    return [python or sys.executable]


def check_environments(stages: Iterable[Stage], cluster: LocalCluster | SlurmCluster) -> None:
    """Check that the Python of stages with vLLM has vLLM, before any stage starts.

    A Python in a container, or one that exists only on the nodes of a cluster, is not checked.

    Raises:
        MissingEnvironmentError: it does not exist, or lacks a package.
    """
    stage = next((stage for stage in stages if runs_vllm(stage)), None)
    if stage is None:
        return
    words = python_words(stage, cluster)
    if isinstance(cluster, SlurmCluster) and (cluster.container or shutil.which(words[0]) is None):
        return
    where = f"{stage.id} runs vLLM, but {words[0]}"
    try:
        done = subprocess.run(
            [*words, "-P", "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
        version, missing = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise MissingEnvironmentError(f"{where} is not a Python that runs", hint=_HINT) from error
    if missing:
        raise MissingEnvironmentError(f"{where} lacks {', '.join(missing)}", hint=_HINT)
    if version != amnesia_bench.__version__:
        raise MissingEnvironmentError(
            f"{where} has amnesia-bench {version}, and this is {amnesia_bench.__version__}",
            hint="Install the same version there.",
        )
