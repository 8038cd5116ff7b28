"""Fetch everything that the stages of experiments read from a network, so that jobs run offline.

Models are the artifacts of `download` stages. Data sets, benchmarks and essays are put into
<store>/hub (see `hub.fetched`), where the stages find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.data_schema import HubSource
from amnesia_bench.data.sources import selection_of
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.hub.fetched import (
    HubFiles,
    Selection,
    WebFile,
    fetched_path,
    fetched_records,
    find_fetched,
)
from amnesia_bench.hub.fetching import fetch_selection, fetch_web_file, names_of
from amnesia_bench.hub.repository import (
    Listing,
    RepositoryKind,
    check_access,
    check_space,
    list_repository,
)
from amnesia_bench.lm_eval_bridge.task_sources import task_selection
from amnesia_bench.pipeline.adopted import adopted_from, needed_stages
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.run import run_graph
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.reasoning.documents import task_files
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.recall.niah.haystack import essay_files
from amnesia_bench.records.hub import FetchedRecord
from amnesia_bench.requests.checkpoints import DownloadRequest, ScoreLayersRequest
from amnesia_bench.requests.data import PrepareRequest
from amnesia_bench.requests.experiments import FetchRequest
from amnesia_bench.requests.reasoning import GenerateRequest, ScoreRequest
from amnesia_bench.requests.recall import BuildPromptsRequest, HubEssays, RankLayersRequest
from amnesia_bench.store.files import nearest_existing
from amnesia_bench.store.hashing import read_manifest
from amnesia_bench.store.layout import store_of
from amnesia_bench.weights.gguf_package import PREFIX, is_licence_text
from amnesia_bench.weights.hub import download_bytes


@dataclass(frozen=True, kw_only=True)
class FetchItem:
    """A model, or a selection of files of a data set.

    Attributes:
        source: the repository, or the URL of a single file.
        use: what needs it, for example "data fineweb_edu_stage1".
        commit: the commit that is or will be in the store; None for a URL or a Python package.
        licence: the licence on the repository's card; None if unknown.
        bytes: how many bytes will be fetched, at most; None if the server does not say.
        fetched: whether it is in the store already.
        note: a remark, for example that the repository has a newer commit; "" for none.
    """

    source: str
    use: str
    commit: str | None
    licence: str | None
    bytes: int | None
    fetched: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Need:
    """Something to fetch: exactly one of `stage` (a model) and `selection` (data) is set."""

    use: str
    stage: Stage | None = None
    selection: Selection | None = None


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A need with what the hub says about it; `listing` is None for fetched data and URLs."""

    need: _Need
    item: FetchItem
    listing: Listing | None = None
    names: tuple[str, ...] = ()


Announce = Callable[[Sequence[FetchItem]], None]
Progress = Callable[[str], None]


def _silent(_: object) -> None:
    pass


def fetch(
    request: FetchRequest, *, announce: Announce = _silent, progress: Progress = _silent
) -> tuple[FetchItem, ...]:
    """Fetch all models and data that the unfinished stages read from a network.

    A repository without a pinned revision is fetched at its newest commit, or at the commit of what
    was fetched from it earlier. What is in the store is kept; if the call is interrupted, the same
    call resumes it.

    Args:
        request: the experiments.
        announce: gets the complete list before anything is fetched.
        progress: gets the source of each item when its transfer begins.

    Returns:
        The list, as it was announced.

    Raises:
        UserError: an override is wrong, or a repository does not exist or is not accessible.
        MissingEnvironmentError: the hub cannot be reached, or `datasets` is not installed.
        StageFailedError: the disk is too small, or a hash differs from the hub's.
    """
    store = store_of(request.store)
    stages = needed_stages(store, stages_of(graphs_of(request.overrides)))
    needs = _needs(store, stages)
    steps = _Survey(store).steps(needs)
    items = tuple(step.item for step in steps)
    announce(items)
    if request.dry_run:
        return items
    missing = [step for step in steps if not step.item.fetched]
    needed = sum(step.item.bytes or 0 for step in missing)
    check_space(
        needed, nearest_existing(store), str(store), "Free some space, or choose another --store."
    )
    for step in missing:
        if step.need.selection is not None:
            progress(step.item.source)
            _fetch(step, store)
    models = [step.need.stage for step in missing if step.need.stage is not None]
    if models:
        run_graph(store, models)
    return items


def _fetch(step: _Step, store: Path) -> None:
    selection = step.need.selection
    if isinstance(selection, WebFile):
        fetch_web_file(selection, store)
    elif selection is not None:
        assert step.listing is not None
        fetch_selection(selection, step.listing, step.names, store)


def _needs(store: Path, stages: Iterable[Stage]) -> list[_Need]:
    """Return what the unfinished stages read from a network, without duplicates."""
    needs: dict[Path, _Need] = {}
    for stage in stages:
        done = state_of(store, stage.kind, stage.id) is StageState.CACHED
        if isinstance(stage.request, DownloadRequest) and adopted_from(store, stage) is None:
            needs[stage.folder(store)] = _Need(use="model", stage=stage)
        elif not done:
            for use, selection in _selections(stage).items():
                path = fetched_path(store, selection)
                needs.setdefault(path, _Need(use=use, selection=selection))
    return list(needs.values())


def _selections(stage: Stage) -> Mapping[str, Selection]:
    """Return the data that a stage reads from a network, by its use."""
    match stage.request:
        case PrepareRequest(config=config, inputs=()) if isinstance(config.source, HubSource):
            return {f"data {config.name}": selection_of(config.source)}
        case BuildPromptsRequest(haystack=HubEssays() as essays):
            return {"haystack": essay_files(essays)}
        case GenerateRequest(data=None, task=task, config=settings):
            return {f"benchmark {task}": task_files(task_named(task), settings)}
        case RankLayersRequest(data=None, tasks=tasks):
            return {f"ranking {task}": task_selection(task) for task in tasks}
        case ScoreLayersRequest(retrieval=retrieval, commonsense=commonsense, data=data):
            missing = [task for task in (*retrieval, *commonsense) if task not in data]
            return {f"selection {task}": task_selection(task) for task in missing}
        case ScoreRequest():  # reads the problems again
            return dict(need for read in stage.inputs for need in _selections(read).items())
        case _:
            return {}


class _Survey:
    """What the hub and the store say about needs; each repository is listed once per revision."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._pins = {record.source: record.commit for record in fetched_records(store)}
        self._listings: dict[tuple[str, str | None, RepositoryKind], Listing] = {}
        self._unreachable = False

    def steps(self, needs: Sequence[_Need]) -> list[_Step]:
        """Return a step for each need.

        Raises:
            UserError: repositories are not accessible; the message has a line for each.
            MissingEnvironmentError: the hub cannot be reached.
        """
        steps, refused = [], []
        for need in needs:
            try:
                steps.append(self._model(need) if need.stage else self._data(need))
            except UserError as error:
                refused.append(error)
        if refused:
            hints = dict.fromkeys(error.hint for error in refused if error.hint)
            raise UserError("\n".join(error.what for error in refused), hint="\n".join(hints))
        return steps

    def _model(self, need: _Need) -> _Step:
        stage = need.stage
        assert stage is not None
        request = stage.request
        assert isinstance(request, DownloadRequest)
        cached = state_of(self._store, stage.kind, stage.id) is StageState.CACHED
        if request.repository.startswith(PREFIX):
            return _Step(need=need, item=_package(stage, need.use, self._store, fetched=cached))
        if cached:
            (parent, *_) = read_manifest(stage.folder(self._store)).parents
            commit = parent.identity.removeprefix("commit:")
            record = FetchedRecord(source=request.repository, commit=commit, licence=None, names=())
            return self._fetched(need, record, request.revision, "model")
        listing = self._listing(request.repository, request.revision, "model")
        return _missing(need, listing, download_bytes(listing))

    def _data(self, need: _Need) -> _Step:
        selection = need.selection
        assert selection is not None
        revision = selection.revision if isinstance(selection, HubFiles) else None
        if (fetched := find_fetched(selection, self._store)) is not None:
            return self._fetched(need, fetched.record, revision, "dataset")
        if isinstance(selection, WebFile):
            return _Step(need=need, item=_unlisted(selection.url, need.use, fetched=False))
        pin = revision or self._pins.get(selection.repository)
        listing = self._listing(selection.repository, pin, "dataset")
        names = names_of(selection, listing)
        return _missing(need, listing, sum(listing.files[name].bytes for name in names), names)

    def _listing(self, repository: str, revision: str | None, kind: RepositoryKind) -> Listing:
        key = repository, revision, kind
        if key not in self._listings:
            listing = list_repository(repository, revision, kind)
            check_access(listing)
            self._listings[key] = listing
        return self._listings[key]

    def _fetched(
        self, need: _Need, record: FetchedRecord, revision: str | None, kind: RepositoryKind
    ) -> _Step:
        pinned = revision is not None or record.commit is None
        item = FetchItem(
            source=record.source,
            use=need.use,
            commit=record.commit,
            licence=record.licence,
            bytes=0,
            fetched=True,
            note="" if pinned else self._newer(record, kind),
        )
        return _Step(need=need, item=item)

    def _newer(self, record: FetchedRecord, kind: RepositoryKind) -> str:
        """Return a note if the hub has a newer commit than the store, or cannot be asked."""
        if not self._unreachable:
            try:
                commit = self._listing(record.source, None, kind).commit
            except MissingEnvironmentError:
                self._unreachable = True
            except UserError as error:
                return error.what
            else:
                return "" if commit == record.commit else f"the hub has a newer commit, {commit}"
        return "not compared with the hub, which cannot be reached"


def _package(stage: Stage, use: str, store: Path, *, fetched: bool) -> FetchItem:
    """Return the item of a model in a Python package, which states its licence in the package."""
    assert isinstance(stage.request, DownloadRequest)
    item = _unlisted(stage.request.repository, use, fetched=fetched)
    if not fetched:
        return replace(item, note="its licence is listed here once it is in the store")
    names = (path.name for path in sorted(stage.folder(store).iterdir()))
    texts = ", ".join(name for name in names if is_licence_text(name))
    return replace(item, licence=texts or None, note=f"licence texts: {stage.folder(store)}")


def _unlisted(source: str, use: str, *, fetched: bool) -> FetchItem:
    """Return the item of a source that states neither commit nor size: a URL, or a package."""
    return FetchItem(source=source, use=use, commit=None, licence=None, bytes=None, fetched=fetched)


def _missing(need: _Need, listing: Listing, num_bytes: int, names: tuple[str, ...] = ()) -> _Step:
    item = FetchItem(
        source=listing.repository,
        use=need.use,
        commit=listing.commit,
        licence=listing.licence,
        bytes=num_bytes,
        fetched=False,
    )
    return _Step(need=need, item=item, listing=listing, names=names)
