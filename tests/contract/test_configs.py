"""Every committed config composes, every kind of typo is one clear error."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from amnesia_bench.config import load
from amnesia_bench.config.experiment_schema import ExperimentConfig, load_jobs
from amnesia_bench.config.load import config_dir, load_variant, options
from amnesia_bench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def load_config(overrides: list[str]) -> ExperimentConfig:
    named = any(override.startswith("experiment=") for override in overrides)
    (job,) = load_jobs([*([] if named else ["experiment=table1"]), *overrides])
    return job.config


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("experiment/*.yaml")))
@pytest.mark.parametrize("profile", sorted(path.stem for path in CONFIGS.glob("profile/*.yaml")))
def test_every_experiment_composes_under_every_profile_it_is_for(name: str, profile: str) -> None:
    overrides = [f"experiment={name}", f"profile={profile}"]
    if (name, profile) == ("controls", "paper"):
        with pytest.raises(UserError, match="is not defined for profile=paper, only for tiny"):
            load_jobs(overrides)
        return
    (job,) = load_jobs(overrides)
    assert job.config.experiment.name == name
    assert set(job.config.scope.reports) <= set(options("report"))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("restore/*.yaml")))
def test_every_variant_is_named_like_its_file_and_says_where_it_comes_from(name: str) -> None:
    assert load_variant(name).name == name
    comment = (CONFIGS / "restore" / f"{name}.yaml").read_text().splitlines()[0]
    assert re.match(r"# .*(Table|section|Figure|Not in the paper)", comment)


def test_the_default_is_qk_restore() -> None:
    assert load_config([]).restore == load_variant("qk")


def test_the_named_variants_and_rows_are_all_there() -> None:
    named = {"qk", "q", "k", "v", "qk_pro", "qk_procrustes", "qk_blend", "qk_low_rank"}
    assert named <= set(options("restore"))
    tables = {"table1", "table2", "table3", "table4", "table10"}
    assert tables <= set(options("experiment"))
    assert options("no_such_group") == ()


# The kinds of typos that Hydra rejects, accepts, and invites.
@pytest.mark.parametrize(
    ("overrides", "said", "hint"),
    [
        (["restre=qk"], "restre: unknown key", "Did you mean restore?"),
        (["sead=3"], "sead: unknown key", "Known: experiment, profile, restore."),
        (["restore.select.layer=3"], "restore.select.layer: unknown key", "Did you mean layers?"),
        (["+restore.select.layer=3"], "restore.select.layer: unknown key", "Did you mean layers?"),
        (["++restore.slect.roles=[q]"], "restore.slect: unknown key", "Did you mean select?"),
        (["+model.layer=3"], "model: unknown key", "Known: experiment, profile, restore."),
        (["a.b.c=1"], "a: unknown key", "Known: experiment, profile, restore."),
        (
            ["restore.select.layers={top_drft: 7}"],
            "restore.select.layers.top_drft: unknown key",
            "Did you mean top_drift?",
        ),
        (
            ["restore=qk_blend", "restore.rule.alhpa=0.5"],
            "restore.rule.alhpa: unknown key",
            "Did you mean alpha?",
        ),
        (["restore.rule.alpha=0.5"], "restore.rule.alpha: unknown key", "Known: kind."),
        (["restore=qk_por"], "restore=qk_por: no such option", "Did you mean qk_pro?"),
        (["restore=qk_por"], "restore=qk_por: no such option", "Known: k, q, qk, qk_blend"),
        (["experiment=tabel4"], "experiment=tabel4: no such", "mean table4?"),
        (["restore.rule.kind=copi"], "restore.rule.kind=copi: unknown", "Did you mean copy?"),
    ],
)
def test_a_misspelled_name_is_answered_with_the_nearest(
    overrides: list[str], said: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides)
    assert said in caught.value.what
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("restore.name=3", "restore.name=3: Input should be a valid string"),
        ("restore.select=3", "restore.select=3: expected keys below it"),
        ("restore.select.roles=q", "restore.select.roles=q: expected a list"),
        ("restore.select.roles=[q,x]", "restore.select.roles[1]=x: Input should be 'q', 'k', 'v'"),
        ("restore.select.layers=3", "restore.select.layers=3: expected all, a list of layer"),
        ("restore.select.layers=al", "restore.select.layers=al: Input should be 'all'"),
        ("restore.select.layers=[1,x]", "restore.select.layers[1]=x: Input should be a valid int"),
        ("restore.select.layers=[1.5]", "restore.select.layers[0]=1.5: Input should be"),
        ("restore.select.layers=null", "restore.select.layers=null: expected all, a list"),
        ("restore.select.heads={a: 1}", "expected all, or a list of KV-group indices"),
        ("restore.select.include_sliding=1", "include_sliding=1: Input should be a valid boolean"),
        ("restore.select.roles=[x]", "restore.select.roles[0]=x: Input should be"),
        ("restore.select.roles=[]", "restore.select.roles=[]: expected at least one item"),
        ("restore.rule=null", "restore.rule=null: expected keys below it"),
        ("restore.rule.kind=blend", "restore.rule.alpha: missing"),
        ("~restore.rule.kind", "restore.rule.kind: missing"),
        ("~restore", "restore: missing"),
    ],
)
def test_a_wrong_type_is_named_with_path_and_value(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([override])
    assert said in caught.value.what
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("override", ["restore=q", "+restore=q", "experiment=table4"])
def test_a_variant_is_named_once(override: str) -> None:
    with pytest.raises(UserError, match="restore is qk; only its values can be changed"):
        load_variant("qk", [override])


@pytest.mark.parametrize(
    "override",
    [
        "abc",
        "=3",
        "",
        "'",
        "restore",
        "restore=",
        "restore=null",
        "restore={a: 1}",
        "restore=../config",
        "restore@x=qk",
        "+restore=q",
        "~experiment=x",
        "restore.name=${oc.env:NO_SUCH_VARIABLE}",
        "restore.name=${nothing}",
        "restore.name=???",
        "restore.select.roles.x=3",
        "restore.name=[",
        "hydra.verbose=true",
        "hydra/launcher=basic",
    ],
)
def test_no_exception_of_hydras_own_leaks(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([override])
    assert "+" not in caught.value.what.replace("+restore=q", "")


def test_code_in_a_config_is_refused() -> None:
    with pytest.raises(UserError, match=r"restore\._target_: not allowed"):
        load_config(["restore._target_=os.system"])
    with pytest.raises(UserError, match=r"restore\.select\.layers\.0\._target_: not allowed"):
        load_config(["restore.select.layers=[{_target_: os.system}]"])


def test_a_variant_is_found_by_name_and_adjusted_by_full_paths() -> None:
    variant = load_variant("qk_blend", ["restore.rule.alpha=0.25", "restore.select.layers=[3,7]"])
    assert variant.rule.kind == "blend"
    assert variant.rule.alpha == 0.25
    assert variant.select.layers == (3, 7)
    with pytest.raises(UserError, match=r"restore=qk_pr: no such option\nDid you mean qk_pro\?"):
        load_variant("qk_pr")
    for name in ("qk,q", "../config", "", "qk restore.name=x"):
        with pytest.raises(UserError, match="no such option"):
            load_variant(name)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configs in a folder where a test may spoil them."""
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    monkeypatch.setattr(load, "config_dir", lambda: folder)
    return folder


def test_a_wrong_key_inside_a_file_is_named(copied: Path) -> None:
    path = copied / "restore" / "qk.yaml"
    path.write_text(path.read_text().replace("layers:", "layerz:"))
    with pytest.raises(UserError) as caught:
        load_config([])
    assert caught.value.what.startswith("restore.select.layerz: unknown key")
    assert "Did you mean layers?" in str(caught.value.hint)


def test_a_wrong_option_inside_a_file_is_named(copied: Path) -> None:
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("restore: qk", "restore: qkk"))
    with pytest.raises(UserError, match=r"restore=qkk: no such option\nDid you mean qk\?"):
        load_config([])


@pytest.mark.parametrize("text", ["name: [", "name: a\nname: b\n", "- 1\n", "\tx: 1", ""])
def test_a_broken_file_is_an_error_of_the_user(copied: Path, text: str) -> None:
    (copied / "restore" / "qk.yaml").write_text(text)
    with pytest.raises(UserError):
        load_config([])


def models(model: BaseModel) -> list[BaseModel]:
    fields = [getattr(model, name) for name in type(model).model_fields]
    return [model] + [m for field in fields if isinstance(field, BaseModel) for m in models(field)]


def test_a_loaded_config_is_frozen_all_the_way_down() -> None:
    config = load_config(["restore.select.layers={top_drift: 7}"])
    assert len(models(config)) == 8
    for model in models(config):
        for name in type(model).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(model, name, None)


def test_a_config_survives_the_way_through_json() -> None:
    config = load_config(["experiment=table4", "restore=qk_pro"])
    assert ExperimentConfig.model_validate_json(config.model_dump_json()) == config


def test_configs_are_found_at_the_root_of_the_repository() -> None:
    assert config_dir() in (CONFIGS, ROOT / "src" / "amnesia_bench" / "configs")


def test_the_wheel_holds_the_committed_configs_and_nothing_private(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is needed to build a wheel")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    committed = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in committed:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    (clone / "configs" / "local").mkdir()
    (clone / "configs" / "local" / "me.yaml").write_text("token: private")

    # By way of the sdist, as releases are made.
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", tmp_path / "dist", "-t"]
    subprocess.run([*hatchling, "sdist"], cwd=clone, check=True, capture_output=True)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (source,) = (tmp_path / "sdist").iterdir()
    subprocess.run([*hatchling, "wheel"], cwd=source, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")

    prefix = "amnesia_bench/configs/"
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(prefix)}
    configs = {name for name in committed if name.startswith("configs/")}
    assert inside == {f"amnesia_bench/{name}" for name in configs}
    assert len(inside) > 10
