"""A difference is found whatever its kind, with numbers where numbers can be compared."""

import json
from pathlib import Path

import numpy as np
import pytest

from amnesia_bench.cli.main import main
from tests.support.checkpoints import config, drifted, random_model, save, write_safetensors
from tests.support.surgery import diff

Q1 = "model.layers.1.self_attn.q_proj.weight"


def test_a_checkpoint_does_not_differ_from_itself(tmp_path: Path) -> None:
    model = random_model(0)
    difference = diff(save(tmp_path / "a", model), save(tmp_path / "b", model, shards=3))
    assert (difference.different, difference.only_in_a, difference.only_in_b) == ((), (), ())
    assert difference.identical == len(model)


def test_how_much_a_tensor_moved(tmp_path: Path) -> None:
    model = random_model(0)
    a = save(tmp_path / "a", model, dtype="F64")
    moved = {**model, Q1: model[Q1].copy()}
    moved[Q1][:2] *= 3
    difference = diff(a, save(tmp_path / "b", moved, dtype="F64"))
    (only,) = difference.different
    assert (only.name, only.layer, only.role) == (Q1, 1, "q")
    assert (only.changed_values, only.values) == (2 * 16, 32 * 16)
    assert only.relative_drift == pytest.approx(
        2 * np.linalg.norm(model[Q1][:2]) / np.linalg.norm(model[Q1])
    )


def test_other_dtypes_shapes_and_names_are_differences(tmp_path: Path) -> None:
    model = {n: np.round(x * 8) / 8 for n, x in random_model(0).items()}  # exact in both dtypes
    a = save(tmp_path / "a", model, dtype="F32")
    b = save(tmp_path / "b", model, dtype="BF16")
    cast = diff(a, b)
    assert len(cast.different) == len(model)
    assert all(d.changed_values == 0 and d.relative_drift == 0 for d in cast.different)
    other = {**model, "extra": np.ones(3), "model.norm.weight": np.ones(5)}
    del other["model.embed_tokens.weight"]
    difference = diff(a, save(tmp_path / "c", other, dtype="F32"))
    assert difference.only_in_a == ("model.embed_tokens.weight",)
    assert difference.only_in_b == ("extra",)
    (norm,) = difference.different
    assert (norm.shape_a, norm.shape_b, norm.relative_drift) == ((16,), (5,), None)


def test_a_sign_of_zero_is_a_difference_of_bits_not_of_values(tmp_path: Path) -> None:
    a = save(tmp_path / "a", {"layers.7.x": np.zeros(4)}, dtype="F32")
    b = save(tmp_path / "b", {"layers.7.x": np.array([0.0, -0.0, 0.0, 0.0])}, dtype="F32")
    (only,) = diff(a, b).different
    assert (only.layer, only.changed_values) == (7, 0)


def test_an_unknown_architecture_is_compared_without_roles(tmp_path: Path) -> None:
    model = random_model(0)
    a = save(tmp_path / "a", model, config_changes={"model_type": "novel"})
    b = save(tmp_path / "b", {**model, Q1: -model[Q1]}, config_changes={"model_type": "novel"})
    difference = diff(a, b)
    assert difference.family is None
    assert [(d.name, d.role) for d in difference.different] == [(Q1, None)]


def test_integer_tensors_are_compared_by_bytes(tmp_path: Path) -> None:
    folders = []
    for name, last in (("a", b"\x00"), ("b", b"\x01")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config()))
        write_safetensors(folder / "model.safetensors", {"x": np.zeros(2)}, ["x"], "F32")
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1].replace(b'"F32"', b'"I32"') + last)
        folders.append(folder)
    (only,) = diff(*folders).different
    assert (only.name, only.changed_values, only.relative_drift) == ("x", None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_diverged_has_no_norm_and_comes_first(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(0)
    moved = drifted(model, 1)
    moved["model.norm.weight"][0] = value
    a, b = save(tmp_path / "a", model), save(tmp_path / "b", moved)
    assert main(["diff", str(a), str(b), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    (norm,) = (d for d in found["different"] if d["name"] == "model.norm.weight")
    assert norm["norm_b_minus_a"] is None
    assert main(["diff", str(a), str(b)]) == 0
    others = capsys.readouterr().out.partition("other tensors")[2].splitlines()
    assert others[4].split()[0] == "model.norm.weight"
