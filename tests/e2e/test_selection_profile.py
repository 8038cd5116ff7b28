"""A profile whose hybrid has selected softmax layers, from random weights to its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.store.hashing import verify_manifest
from tests.support.pipelines import driver, finished

OVERRIDES = ("experiment=table1", "profile=smoke_selection")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_softmax_layers_of_the_table_are_the_selected_ones(tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = driver(store, *OVERRIDES)
    output, _ = run.communicate()
    assert run.returncode == 0, output
    stages = {stage.id: stage for stage in stages_of(graphs_of(OVERRIDES))}
    assert stages.keys() <= finished(store).keys()
    (scores,) = (s for s in stages.values() if s.kind == "layer_scores")
    (selection,) = (s for s in stages.values() if s.kind == "selection")
    assert verify_manifest(scores.folder(store)) == verify_manifest(selection.folder(store)) == []
    models = {path.name for path in scores.folder(store).iterdir() if path.is_dir()}
    assert models == {"original", "layer0", "layer1", "layer2", "layer3"}
    selected = json.loads((selection.folder(store) / "selection.json").read_text())["selected"]
    assert len(selected) == 2
    checked = set()
    for stage in stages.values():
        if stage.shape == "hypenet_pico":
            config = json.loads((stage.folder(store) / "config.json").read_text())
            softmax = [i for i, kind in enumerate(config["mixer_types"]) if kind == "attn"]
            in_stage_1 = "stage1" in stage.name
            assert softmax == ([] if in_stage_1 else selected), stage.id
            checked.add(stage.kind)
    assert checked == {"converted", "trained", "restored"}
    assert list((tmp_path / "results").glob("**/tiny_table1*"))
