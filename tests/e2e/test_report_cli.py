"""`amnesia report`: from folders of cells to files, and every input that is not as it should be."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.store.hashing import read_manifest, sha256_of
from tests.support.report_cells import (
    METHODS,
    forgetful,
    publish,
    tiny_overrides,
    write_all,
    write_recall,
    write_scores,
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_all(tmp_path_factory.mktemp("cells"))


def drift_file(folder: Path) -> Path:
    """Return a file as `amnesia diff --json` prints it, of two layers."""
    tensors = [
        {
            "name": f"model.layers.{layer}.self_attn.{role}_proj.weight",
            "name_b": f"model.layers.{layer}.self_attn.{role}_proj.weight",
            "layer": layer,
            "role": role,
            "shape_a": [4, 4],
            "shape_b": [4, 4],
            "dtype_a": "F32",
            "dtype_b": "F32",
            "values": 16,
            "changed_values": 16,
            "norm_a": 2.0,
            "norm_b_minus_a": moved,
        }
        for layer, role, moved in ((3, "q", 0.5), (3, "k", 0.2), (7, "q", 0.1), (7, "v", 1.0))
    ]
    whole = {"a": "pre", "b": "post", "family": "hypenet", "softmax_layers": [3, 7]}
    whole |= {"only_in_a": [], "only_in_b": [], "identical": 0, "renamed": 0, "different": tensors}
    path = folder / "drift.json"
    path.write_text(json.dumps(whole))
    return path


def report(out: Path, labelled: list[str], *more: str, table: str = "table1") -> int:
    given = [part for text in labelled for part in ("--cells", text)]
    return main(["report", "--table", table, "--out", str(out), *given, *more, *tiny_overrides()])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("report")
    drift = drift_file(folder)
    assert report(folder / "out", cells, "--drift", f"tiny={drift}") == 0
    return folder / "out"


def test_all_formats_hold_the_same_numbers(written: Path) -> None:
    rows = list(csv.DictReader((written / "table1.csv").open()))
    assert len(rows) == 3 * 12
    data = json.loads((written / "table1.json").read_text())["table"]
    by_place = {(c["method"], c["column"]): c for c in data["cells"]}
    text = (written / "table1.md").read_text()
    latex = (written / "table1.tex").read_text()
    page = (written / "report.html").read_text()
    for row in rows:
        cell = by_place[row["method"], row["column"]]
        assert row["status"] == cell["status"]
        if row["status"] == "missing":
            assert row["task"] == "aime24"
            assert row["value"] == ""
            continue
        assert float(row["value"]) == cell["value"]
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        shown = f"{100 * cell['value']:.1f}"
        assert all(shown in each for each in (text, latex, page))
    assert latex.count(r"\\") == 2 + 3
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){3-4}"):
        assert rule in latex
    line = next(line for line in text.splitlines() if line.startswith("| tiny | +SFT"))
    assert line.endswith("| - | - |")


def test_the_loss_and_the_repair_are_significant_and_the_claims_follow(written: Path) -> None:
    data = json.loads((written / "table1.json").read_text())
    cells = {(c["method"], c["column"]): c for c in data["table"]["cells"]}
    for method in ("pre", "restored"):
        test = cells[method, "niah_single_3@4096"]["against_post"]
        assert test["n"] == 60
        assert test["p_value"] < 0.05
        assert test["difference"] > 0
    assert cells["post", "niah_single_3@4096"]["against_post"] is None
    assert cells["restored", "niah_single_1@4096"]["against_post"]["p_value"] == 1
    verdicts = {claim["id"]: claim["verdict"] for claim in data["claims"]}
    assert verdicts["cot-sft-loses-recall"] == "holds"
    assert verdicts["qk-restore-recovers"] == "holds"
    assert verdicts["sft-gains-reasoning"] == "holds"
    assert "| CoT-SFT raises mathematics. | **holds** |" in (written / "table1.md").read_text()


def test_every_number_leads_to_its_manifest(written: Path) -> None:
    page = (written / "report.html").read_text()
    numbers = re.findall(r'<td[^>]*><a href="#([^"]+)">[\d.]+</a>', page)
    assert len(numbers) == 3 * (6 + 4)
    for anchor in set(numbers):
        (row,) = re.findall(rf"<tr id={anchor}>(.*?)</tr>", page)
        address, stage = re.findall(r'<a href="([^"]+)">([^<]+)</a>', row)[0]
        manifest = (written / address).resolve()
        assert read_manifest(manifest.parent).kind == "test"
        assert manifest.parent.name == stage
        assert f"<code>{sha256_of(manifest)[:12]}</code>" in row
    rows = csv.DictReader((written / "table1.csv").open())
    for line in (row for row in rows if row["status"] == "done"):
        assert sha256_of(written / line["path"]) == line["manifest_sha256"]


def test_the_same_cells_give_the_same_pictures_and_table(
    written: Path, cells: list[str], tmp_path: Path
) -> None:
    drift = written.parent / "drift.json"
    assert report(tmp_path / "again", cells, "--drift", f"tiny={drift}") == 0
    pictures = [path for path in sorted(written.iterdir()) if path.suffix in (".svg", ".tex")]
    assert {path.name for path in pictures} == {
        "drift.svg",
        "table1_recall_tiny.svg",
        "table1.tex",
        *(f"table1_heat_map_tiny_niah_single_{i}.svg" for i in (1, 2, 3)),
    }
    for path in pictures:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_drift_is_put_together_by_layer(written: Path) -> None:
    (curve,) = json.loads((written / "drift.json").read_text())
    assert curve["layers"] == [
        {"layer": 3, "role": "k", "drift": pytest.approx(0.1)},
        {"layer": 3, "role": "q", "drift": pytest.approx(0.25)},
        {"layer": 7, "role": "q", "drift": pytest.approx(0.05)},
    ]


def test_without_cells_everything_looks_missing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "run").mkdir(parents=True)
    (empty / "run" / "generations.jsonl").write_text("")
    assert report(tmp_path / "out", [f"tiny={empty}"]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "table1.csv").open()))
    assert {row["status"] for row in rows} == {"missing"}
    assert "answers but no cells" in (tmp_path / "out" / "table1.md").read_text()
    assert not list((tmp_path / "out").glob("*.svg"))


def test_a_folder_that_was_made_again_is_read_again(tmp_path: Path) -> None:
    found = []
    for method in ("pre", "post"):
        shutil.rmtree(tmp_path / "cells", ignore_errors=True)
        write_recall(tmp_path / "cells", "post", forgetful(method), samples=20)
        assert report(tmp_path / "out", [f"tiny={tmp_path / 'cells'}"]) == 0
        rows = csv.DictReader((tmp_path / "out" / "table1.csv").open())
        (row,) = [r for r in rows if (r["method"], r["column"]) == ("post", "niah_single_3@4096")]
        found.append(float(row["value"]))
    assert found[0] > found[1]


def test_an_incomplete_cell_says_why(tmp_path: Path) -> None:
    folder = write_recall(tmp_path / "a", "post", forgetful("post"), samples=5)
    cells = json.loads((folder / "cells.json").read_text())
    for cell in cells:
        cell |= {"value": None, "interval": None, "stderr": None, "n": 0}
        cell["incomplete"] = "3 answers are missing"
    publish(tmp_path / "b", {"cells.json": cells})
    assert report(tmp_path / "out", [f"tiny={tmp_path / 'b'}"]) == 0
    for name in ("table1.md", "report.html", "table1.csv"):
        assert "3 answers are missing" in (tmp_path / "out" / name).read_text()
    assert "| incomplete |" in (tmp_path / "out" / "table1.md").read_text()


def test_a_cell_of_a_dirty_tree_is_marked_also_through_its_parents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = publish(tmp_path / "model", {"x.jsonl": []}, dirty=True)
    write_recall(tmp_path / "post", "post", forgetful("post"), samples=5, dirty=True)
    clean = write_recall(tmp_path / "clean", "pre", forgetful("pre"), samples=5)
    cells = json.loads((clean / "cells.json").read_text())
    for cell in cells:
        cell["parents"][0]["location"] = str(model)
    publish(tmp_path / "pre", {"cells.json": cells})
    labelled = [f"tiny={tmp_path / method}" for method in ("pre", "post")]
    assert report(tmp_path / "out", labelled) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "table1.csv").open()))
    dirty = {row["method"]: row["dirty"] for row in rows if row["column"] == "niah_single_1@1024"}
    assert dirty["pre"] == "../model/manifest.json"
    assert dirty["post"] == "../post/manifest.json"
    assert "100.0†" in (tmp_path / "out" / "table1.md").read_text()


def test_seeds_are_pooled_and_each_is_told(tmp_path: Path) -> None:
    labelled = []
    for seed in (0, 1, 2):
        for method in METHODS:
            folder = tmp_path / f"{method}{seed}"
            write_recall(folder, method, forgetful(method), samples=20, seed=seed)
            labelled.append(f"tiny/{method}/{seed}={folder}")
    assert report(tmp_path / "out", labelled) == 0
    data = json.loads((tmp_path / "out" / "table1.json").read_text())["table"]["cells"]
    cell = next(c for c in data if (c["method"], c["column"]) == ("post", "niah_single_3@4096"))
    assert cell["n"] == 60
    assert set(cell["by_seed"]) == {"0", "1", "2"}
    assert cell["value"] == pytest.approx(sum(cell["by_seed"].values()) / 3)
    assert cell["interval"]["method"] == "bootstrap over seeds and prompts"
    restored = next(
        c for c in data if (c["method"], c["column"]) == ("restored", "niah_single_3@4096")
    )
    assert (restored["against_post"]["n"], restored["against_post"]["seeds"]) == (60, 3)
    text = (tmp_path / "out" / "table1.md").read_text()
    assert (
        "With 3 seeds, nothing can be significant at 5 % (the smallest possible p is 0.25)" in text
    )
    assert "(the smallest p that 3 seeds can give is 0.25)" in text
    assert "**holds**" not in text
    assert "n = 60 (3 seeds x the same 20 prompts)" in text


def test_the_report_says_how_well_a_fine_tune_was_learned_and_what_all_cost(tmp_path: Path) -> None:
    labelled = []
    for seed, ends in ((0, 0.1), (1, 0.3)):
        trained = tmp_path / f"sft{seed}"
        # 20 steps, of which the last two are the last tenth.
        steps = [{"step": i + 1, "loss": ends if i >= 18 else 5.0} for i in range(20)]
        publish(trained, {"metrics.jsonl": steps}, kind="trained", seconds=3600.0)
        folder = write_recall(tmp_path / f"post{seed}", "post", forgetful("post"), samples=5)
        cells = json.loads((folder / "cells.json").read_text())
        for cell in cells:
            cell["parents"].append({"role": "model", "location": str(trained), "identity": "x"})
        publish(tmp_path / f"measured{seed}", {"cells.json": cells})
        labelled.append(f"tiny/post/{seed}={tmp_path / f'measured{seed}'}")
    assert report(tmp_path / "out", labelled) == 0
    note = "tiny post 0.200 (0.100 to 0.300 in 2 seeds)"
    assert note in (tmp_path / "out" / "table1.md").read_text()
    overview = (tmp_path / "out" / "report.md").read_text()
    assert note in overview
    # The two trainings took an hour each, by their own record.
    assert "Cost: 4 artifacts, which took 2.0 hours in total" in overview
    (tmp_path / "sft1" / "metrics.jsonl").write_text("{}")
    assert report(tmp_path / "out", labelled) == 2


def test_six_seeds_of_several_stores_show_what_all_of_them_show(tmp_path: Path) -> None:
    labelled = []
    for seed in range(6):
        for method in METHODS:
            folder = tmp_path / f"store{seed % 2}" / f"{method}{seed}"
            write_recall(folder, method, forgetful(method), samples=20, seed=seed)
            labelled.append(f"tiny/{method}/{seed}={folder}")
    assert report(tmp_path / "out", labelled) == 0
    data = json.loads((tmp_path / "out" / "table1.json").read_text())["claims"]
    loss = next(claim for claim in data if claim["id"] == "cot-sft-loses-recall")
    assert loss["verdict"] == "holds"
    assert [condition["p_value"] for condition in loss["conditions"]] == [2 / 2**6] * 2
    (aim,) = (claim for claim in data if claim["aim"] and "20 points" in claim["text"])
    (condition,) = aim["conditions"]
    # The test is against the bound of the claim, not against 0.
    assert condition["p_value"] == 2 / 2**6
    assert all(value > 0.2 for value in condition["by_seed"].values())


def test_with_several_seeds_a_value_alone_is_not_enough(tmp_path: Path) -> None:
    labelled = []
    for seed in range(6):
        for method in ("pre", "post"):
            # One of six seeds loses nothing: the test over seeds is then not significant.
            accuracy = forgetful("pre" if seed == 3 else method)
            folder = write_recall(tmp_path / f"{method}{seed}", method, accuracy, seed=seed)
            labelled.append(f"tiny/{method}/{seed}={folder}")
    assert report(tmp_path / "out", labelled) == 0
    data = json.loads((tmp_path / "out" / "table1.json").read_text())["claims"]
    loss = next(claim for claim in data if claim["id"] == "cot-sft-loses-recall")
    assert loss["verdict"] == "not shown"
    assert all(condition["estimate"] > 0.3 for condition in loss["conditions"])
    assert all(condition["p_value"] == 4 / 2**6 for condition in loss["conditions"])


def test_a_flexible_score_does_not_take_the_place_of_a_strict_one(tmp_path: Path) -> None:
    write_scores(tmp_path / "flexible", "post", {"math500": 0.9}, scorer="flexible")
    write_scores(tmp_path / "strict", "post", {"math500": 0.4})
    labelled = [f"tiny={tmp_path / name}" for name in ("flexible", "strict")]
    assert report(tmp_path / "out", labelled) == 0
    rows = csv.DictReader((tmp_path / "out" / "table1.csv").open())
    (row,) = [r for r in rows if (r["method"], r["column"]) == ("post", "math500 avg@16")]
    assert float(row["value"]) < 0.6


def refused(capsys: pytest.CaptureFixture[str], out: Path, *given: str) -> str:
    """Run a report that is refused, writes nothing, and return what it says."""
    code = main(["report", "--out", str(out), *given, *tiny_overrides()])
    said = capsys.readouterr().err
    assert code == 2, said
    assert not out.exists()
    assert "Traceback" not in said
    return said


def test_bad_input_is_named_and_nothing_is_written(
    tmp_path: Path, cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    good = write_recall(tmp_path / "good", "post", forgetful("post"), samples=5)
    other = write_recall(tmp_path / "other", "post", forgetful("pre"), samples=5)
    cut = shutil.copytree(good, tmp_path / "cut")
    (cut / "cells.json").write_text((good / "cells.json").read_text()[:200])
    flipped = shutil.copytree(good, tmp_path / "flipped")
    text = (good / "samples.jsonl").read_text()
    (flipped / "samples.jsonl").write_text(
        text.replace('"depth_percent": ', '"depth_percent": 1', 1)
    )
    # Without a manifest nothing but the contents can tell.
    torn = shutil.copytree(good, tmp_path / "torn")
    (torn / "manifest.json").unlink()
    (torn / "samples.jsonl").write_text((good / "samples.jsonl").read_text()[:-40])
    mixed = shutil.copytree(good, tmp_path / "mixed")
    (mixed / "manifest.json").unlink()
    shutil.copy(other / "samples.jsonl", mixed / "samples.jsonl")
    changed = shutil.copytree(good, tmp_path / "changed")
    text = (good / "cells.json").read_text()
    (changed / "cells.json").write_text(text.replace('"repeats": 1', '"repeats": 2', 1))
    unsigned = shutil.copytree(good, tmp_path / "unsigned")
    (unsigned / "manifest.json").write_text((good / "manifest.json").read_text()[:100])
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "cell.json").write_text('{"model": "tiny", "method": "post"}')

    def said(*labelled: str, table: str = "table1") -> str:
        given = [part for text in labelled for part in ("--cells", text)]
        return refused(capsys, out, "--table", table, *given)

    assert "Did you mean table1?" in said(table="tabel1")
    both = said(f"tiny={good}", f"tiny={other}")
    assert f"{good}/cells.json" in both
    assert f"{other}/cells.json" in both
    assert "two cells for one slot of the table (tiny, post, niah_single_2 recall at 4096)" in both
    assert f"{cut}/cells.json" in said(f"tiny={cut}")
    assert f"{torn}/samples.jsonl:30: not JSON" in said(f"tiny={torn}")
    assert f"{flipped}/samples.jsonl: it was changed since" in said(f"tiny={flipped}")
    assert "the answers next to it have the mean" in said(f"tiny={mixed}")
    assert "it was changed since" in said(f"tiny={changed}")
    assert f"{unsigned}/manifest.json" in said(f"tiny={unsigned}")
    assert "missing key 'task'" in said(f"tiny={loose}")
    assert "no such folder" in said(f"tiny={tmp_path / 'nowhere'}")
    assert "expected DIR, or MODEL/METHOD@SFT/SEED=DIR" in said("tiny//0=nowhere")
    assert "Did you mean tiny?" in said(f"tinny={good}")
    assert "no method 'pst' in table1" in said(f"tiny/pst={good}")
    assert "neither a restoration.json" in refused(
        capsys, out, "--table", "table1", "--drift", str(good / "manifest.json")
    )
    assert "report.recal: unknown key" in refused(
        capsys, out, "--table", "table1", "report.recal.lengths=[5]"
    )


def test_a_file_in_the_way_of_the_folder_is_named(
    tmp_path: Path, cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert report(tmp_path / "file", cells) == 2
    assert "exists and is not a folder" in capsys.readouterr().err
