from pathlib import Path

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.store.layout import (
    artifact_path,
    check_final,
    lease_path,
    leftover_paths,
    new_working_path,
    store_root,
)


def test_the_store_lies_where_the_user_says_or_in_the_cache() -> None:
    assert store_root({"AMNESIA_STORE": "/data/store"}) == Path("/data/store")
    assert store_root({"XDG_CACHE_HOME": "/c"}) == Path("/c/amnesia_bench")
    assert store_root({}) == Path.home() / ".cache" / "amnesia_bench"


def test_an_artifact_has_a_folder_per_kind_and_id() -> None:
    assert artifact_path(Path("/s"), "restored", "qk-1a2b") == Path("/s/restored/qk-1a2b")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", ".a", "a\n", "a b", "a\0", "x" * 300]
)
def test_ids_that_are_not_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="artifact id"):
        artifact_path(Path("/s"), "restored", name)
    with pytest.raises(UserError, match="artifact kind"):
        artifact_path(Path("/s"), name, "a")


@pytest.mark.parametrize("final", ["/", ".", "..", "a/..", "a/.hidden", "x" * 201])
def test_finals_that_are_not_names_are_refused(final: str) -> None:
    with pytest.raises(UserError, match="not a name for an output folder"):
        check_final(Path(final))


def test_work_in_progress_is_a_hidden_sibling_and_found_again(tmp_path: Path) -> None:
    final = tmp_path / "a[1]"
    working = new_working_path(final)
    assert working.parent == tmp_path == lease_path(final).parent
    assert working.name.startswith(".")
    assert lease_path(final).name.startswith(".")
    assert working != new_working_path(final)
    working.mkdir()
    assert leftover_paths(final) == [working]


def test_the_work_of_a_folder_with_a_longer_name_is_left_alone(tmp_path: Path) -> None:
    new_working_path(tmp_path / "a.tmp-b").mkdir()
    new_working_path(tmp_path / f"a.tmp-{'0' * 16}").mkdir()
    new_working_path(tmp_path / "ba").mkdir()
    lease_path(tmp_path / "a").mkdir()
    assert leftover_paths(tmp_path / "a") == []
