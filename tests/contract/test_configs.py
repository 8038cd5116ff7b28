"""Every committed config composes, every kind of typo is one clear error."""

import re
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from amnesia_bench.config import files, load
from amnesia_bench.config.experiment_schema import ExperimentConfig, load_jobs
from amnesia_bench.config.files import config_dir, options, read_config, read_yaml
from amnesia_bench.config.load import load_variant
from amnesia_bench.errors import UserError
from tests.support.experiments import is_defined

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def load_config(overrides: list[str]) -> ExperimentConfig:
    named = any(override.startswith("experiment=") for override in overrides)
    (job,) = load_jobs([*([] if named else ["experiment=table1"]), *overrides])
    return job.config


GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_a_name_means_one_config_and_no_file_says_what_it_is_called() -> None:
    for group in GROUPS:
        entries = [
            entry
            for path in (CONFIGS / group).iterdir()
            for entry in read_yaml(path).get("configs", ())
        ]
        # A file may bear the name of one of its own entries, as miromind does.
        elsewhere = {
            path.stem
            for path in (CONFIGS / group).iterdir()
            if path.stem not in read_yaml(path).get("configs", ())
        }
        assert len({*entries} | elsewhere) == len(entries) + len(elsewhere), group
        for name in options(group):
            assert "name" not in read_config(group, name).values


def leaves(values: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    if not isinstance(values, dict) or not values:
        return {path: values}
    return {k: v for key in values for k, v in leaves(values[key], (*path, str(key))).items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_all_configs_of_a_file_say_is_said_once(path: Path) -> None:
    content = read_yaml(path)
    said = [leaves(entry or {}) for entry in content.get("configs", {}).values()]
    # What is copied, and from where, is said of each repair: it is what a repair is.
    if len(said) > 1 and path.parent.name != "restore":
        same = set.intersection(*({(k, repr(v)) for k, v in each.items()} for each in said))
        assert not same


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in ("model", "restore")])
def test_what_all_files_of_a_group_say_is_said_once(group: str) -> None:
    paths = list((CONFIGS / group).glob("[!_]*.yaml"))
    said = [leaves({k: v for k, v in read_yaml(p).items() if k != "extends"}) for p in paths]
    assert not set.intersection(*({(k, repr(v)) for k, v in each.items()} for each in said))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_file_repeats_what_it_extends(path: Path) -> None:
    if path.parent == CONFIGS:
        return
    content = read_yaml(path)
    for key, entry in {None: content, **content.get("configs", {})}.items():
        place = files.Place(path, key)
        own = leaves({k: v for k, v in (entry or {}).items() if k not in ("extends", "configs")})
        bases: dict[str, object] = {}
        for group, base in files.bases_of(place, path.parent.name):
            bases = files.merged(bases, files.compose(base, group).values)
        inherited = leaves(bases)
        repeated = {k for k, v in own.items() if k in inherited and inherited[k] == v and k}
        assert not repeated, (place, repeated)


@pytest.mark.parametrize("name", options("experiment"))
@pytest.mark.parametrize("profile", options("profile"))
def test_every_experiment_composes_under_every_profile_it_is_for(name: str, profile: str) -> None:
    overrides = [f"experiment={name}", f"profile={profile}"]
    if not is_defined(name, profile):
        with pytest.raises(UserError, match=f"is not defined for profile={profile}, only for"):
            load_jobs(overrides)
        return
    (job,) = load_jobs(overrides)
    assert job.config.experiment.name == name
    assert set(job.config.scope.reports) <= set(options("report"))


@pytest.mark.parametrize("name", options("restore"))
def test_every_variant_has_its_name_and_says_where_it_comes_from(name: str) -> None:
    assert load_variant(name).name == name
    text = (CONFIGS / "restore" / "variants.yaml").read_text()
    comment = re.search(rf"((?:  #.*\n)+)  {name}:\n", text)
    assert comment is not None
    assert re.search(r"Table|[Ss]ection|Figure|Not in the paper", comment[1])


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
        (
            ["sead=3"],
            "sead: unknown key",
            "Known: cluster, experiment, profile, restore, tracking.",
        ),
        (["restore.select.layer=3"], "restore.select.layer: unknown key", "Did you mean layers?"),
        (["+restore.select.layer=3"], "restore.select.layer: unknown key", "Did you mean layers?"),
        (["++restore.slect.roles=[q]"], "restore.slect: unknown key", "Did you mean select?"),
        (
            ["+model.layer=3"],
            "model: unknown key",
            "Known: cluster, experiment, profile, restore, tracking.",
        ),
        (["a.b.c=1"], "a: unknown key", "Known: cluster, experiment, profile, restore, tracking."),
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
        (["restore=qk_por"], "restore=qk_por: no such option", "Known: dare, k, layer_fisher"),
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
    monkeypatch.setattr(files, "config_dir", lambda: folder)
    monkeypatch.setattr(load, "config_dir", lambda: folder)
    return folder


def test_a_wrong_key_inside_a_file_is_named(copied: Path) -> None:
    path = copied / "restore" / "variants.yaml"
    lines = path.read_text().splitlines()
    line = lines.index("    select: {roles: [q, k]}")
    lines[line] = "    select: {rolez: [q, k]}"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        load_config([])
    said = caught.value.what.splitlines()
    assert said[0] == f"restore.select.rolez: unknown key ({path}:{line + 1})"
    assert "Did you mean roles?" in str(caught.value.hint)


def test_a_wrong_option_inside_a_file_is_named(copied: Path) -> None:
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("restore: qk", "restore: qkk"))
    with pytest.raises(UserError, match=r"restore=qkk: no such option\nDid you mean qk\?"):
        load_config([])


@pytest.mark.parametrize("text", ["name: [", "name: a\nname: b\n", "- 1\n", "\tx: 1", ""])
def test_a_broken_file_is_an_error_of_the_user(copied: Path, text: str) -> None:
    (copied / "restore" / "variants.yaml").write_text(text)
    with pytest.raises(UserError):
        load_config([])


def models(model: BaseModel) -> list[BaseModel]:
    fields = [getattr(model, name) for name in type(model).model_fields]
    return [model] + [m for field in fields if isinstance(field, BaseModel) for m in models(field)]


def test_a_loaded_config_is_frozen_all_the_way_down() -> None:
    config = load_config(["restore.select.layers={top_drift: 7}"])
    assert len(models(config)) == 11
    for model in models(config):
        for name in type(model).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(model, name, None)


def test_a_config_survives_the_way_through_json() -> None:
    config = load_config(["experiment=table4", "restore=qk_pro"])
    assert ExperimentConfig.model_validate_json(config.model_dump_json()) == config


def test_configs_are_found_at_the_root_of_the_repository() -> None:
    assert config_dir() in (CONFIGS, ROOT / "src" / "amnesia_bench" / "configs")
