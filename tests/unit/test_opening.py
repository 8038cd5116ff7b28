"""Engines by name: what none of them can run is said before anything is loaded."""

from pathlib import Path

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.evals.engines.opening import open_engine
from amnesia_bench.evals.engines.options import EngineOptions
from tests.tiny_models import tiny_model


def test_a_hypenet_is_not_for_vllm(tmp_path: Path) -> None:
    tiny_model("hypenet").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a HypeNet, which vLLM does not know") as failure:
        open_engine("vllm", tmp_path, EngineOptions())
    assert "--engine transformers" in str(failure.value)


def test_an_unknown_engine_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="engine vlm: not known") as failure:
        open_engine("vlm", tmp_path, EngineOptions())
    assert "vllm" in str(failure.value)
