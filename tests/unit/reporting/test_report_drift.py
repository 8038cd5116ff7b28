"""Drift is read from the records of a real restore and a real diff, which must agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from amnesia_bench.cli.report import parse_drift
from amnesia_bench.errors import UserError
from amnesia_bench.records.codec import to_json
from amnesia_bench.reporting.drift import read_drift
from amnesia_bench.requests.experiments import LabelledDrift
from tests.support.checkpoints import SOFTMAX_LAYERS, drifted, random_model, save
from tests.support.surgery import diff, restore


def test_restore_and_diff_tell_the_same_drift(tmp_path: Path) -> None:
    pre = save(tmp_path / "pre", random_model(0))
    post = save(tmp_path / "post", drifted(random_model(0), 1))
    restore(pre, post, tmp_path / "out")
    (tmp_path / "diff.json").write_text(json.dumps(to_json(diff(pre, post))))
    by_restore = read_drift(LabelledDrift(file=tmp_path / "out" / "restoration.json"), tmp_path)
    by_diff = read_drift(parse_drift(f"tiny={tmp_path / 'diff.json'}"), tmp_path)
    assert (by_restore.label, by_diff.label) == ("out", "tiny")
    places = {(each.layer, each.role) for each in by_restore.layers}
    assert places == {(layer, role) for layer in SOFTMAX_LAYERS for role in ("q", "k")}
    for ours, theirs in zip(by_restore.layers, by_diff.layers, strict=True):
        assert (ours.layer, ours.role) == (theirs.layer, theirs.role)
        assert ours.drift == pytest.approx(theirs.drift)
        assert ours.drift > 0


def test_what_holds_no_drift_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match=r"neither a restoration\.json"):
        read_drift(LabelledDrift(file=tmp_path / "other.json"), tmp_path)
    same = save(tmp_path / "same", random_model(0))
    (tmp_path / "diff.json").write_text(json.dumps(to_json(diff(same, same))))
    with pytest.raises(UserError, match="no drift of W_Q or W_K"):
        read_drift(LabelledDrift(file=tmp_path / "diff.json"), tmp_path)


def test_a_report_needs_no_torch() -> None:
    code = (
        "import sys, amnesia_bench.reporting.building, amnesia_bench.cli.report; "
        "print(sorted({'torch', 'transformers', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
