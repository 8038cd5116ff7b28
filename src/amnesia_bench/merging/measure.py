"""The front door `measure`: the values from which a rule derives how far to move towards pre."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from amnesia_bench.analysis.texts import Text, texts_of
from amnesia_bench.config.schema import Blend, Copy, StepBack
from amnesia_bench.data.sequence_store import open_store
from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import EngineOptions, silent
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.merging.values import layer_information, mean_loss
from amnesia_bench.records import codec
from amnesia_bench.records.measurement import LayerInformation, Measurement
from amnesia_bench.records.restoration import EditedTensor
from amnesia_bench.requests.checkpoints import MeasureRequest, RestoreRequest
from amnesia_bench.store.files import explaining_write_errors, make_folder, replace_text
from amnesia_bench.store.lease import holding_lease
from amnesia_bench.store.sealed_json import sealed_text
from amnesia_bench.surgery.measured import step_back_alpha, steps_back
from amnesia_bench.surgery.restoration import restore
from amnesia_bench.tokenizers.tokenizer import load_tokenizer, tokenizer_identity
from amnesia_bench.weights.checkpoint import open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents


def measure(
    request: MeasureRequest, out: Path, *, progress: Callable[[str], None] = silent
) -> Measurement:
    """Measure what the rule of a variant needs, and write it to a file for `restore`.

    LM-Cocktail needs the losses of pre and post on a few texts. To step back, the loss of every
    step is measured; each step is the checkpoint that `restore` would write, in a temporary folder
    next to `out`. The Fisher information is measured on random tokens.

    Args:
        request: the checkpoints, the variant and the texts.
        out: the JSON file to write.
        progress: called with one line of text before each measurement.

    Raises:
        UserError: an input is wrong, or `out` exists; nothing is written.
        BusyError: another process is writing `out`.
        StageFailedError: a checkpoint changed during the measurement, or the disk is full.
    """
    if out.exists():
        raise UserError(f"{out}: already exists", hint="Choose another file.")
    # Before anything is measured, check that the checkpoints match.
    planned = restore(_restore_request(request, Copy()), None).tensors
    texts, data = _texts(request)
    checkpoints = open_checkpoint(request.pre), open_checkpoint(request.post)
    pre, post = map(parent_by_contents, ("pre", "post"), checkpoints)
    with explaining_write_errors(out, "nothing was written"):
        make_folder(out.parent)
        with holding_lease(out) as lease:
            models = _Models(progress)
            if request.random_tokens is not None:
                values = _Values(fisher=_information(request, planned, models))
            else:
                values = _losses(request, texts, models, out)
            measurement = Measurement(
                pre=pre,
                post=post,
                **request.variant.model_dump(mode="json", exclude={"name"}),
                data=data,
                loss_pre=values.loss_pre,
                losses=values.losses,
                fisher=values.fisher,
                settings=models.settings,
            )
            for checkpoint in checkpoints:
                checkpoint.held.check()
            lease.check()
            replace_text(out, sealed_text(codec.to_json(measurement)))
    return measurement


@dataclass(frozen=True, kw_only=True)
class _Values:
    """The measured values, as in `Measurement`."""

    loss_pre: float | None = None
    losses: tuple[float, ...] = ()
    fisher: tuple[LayerInformation, ...] = ()


class _Models:
    """Loads models one at a time, and reports each measurement.

    Attributes:
        settings: the settings of the engine that loaded the last model.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.progress = progress
        self.settings: Mapping[str, str] = {}

    def load(self, folder: Path) -> Any:
        engine = TransformersEngine.load(folder, EngineOptions())
        self.settings = engine.settings
        return engine.module.eval()

    def loss(self, folder: Path, texts: Sequence[Text], name: str) -> float:
        self.progress(f"measuring the loss of {name}")
        loss = mean_loss(self.load(folder), texts)
        if not math.isfinite(loss):
            raise _diverged(folder, "loss")
        return loss


def _diverged(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder}: its {what} is NaN or infinite, so nothing can be derived from it",
        hint="Has the training of this model diverged? Compare it with its base: amnesia diff.",
    )


def _restore_request(request: MeasureRequest, rule: Copy | Blend) -> RestoreRequest:
    variant = request.variant.model_copy(update={"rule": rule})
    return RestoreRequest(
        pre=request.pre, post=request.post, variant=variant, cast=request.cast, allow_noop=True
    )


def _texts(request: MeasureRequest) -> tuple[list[Text], str]:
    """Return the texts on which losses are measured, and a description of all tokens."""
    if request.random_tokens is not None:
        drawn = request.random_tokens
        return [], f"{drawn.samples} x {drawn.tokens} random tokens, seed {drawn.seed}"
    assert request.data is not None, request  # its validator requires one of the two
    store = open_store(request.data)
    identity = tokenizer_identity(load_tokenizer(request.post))
    if identity != store.tokenizer_sha256:
        raise UserError(
            f"{request.data}: prepared with another tokenizer than that of {request.post}",
            hint=f"Prepare the data again: amnesia data prepare ... --tokenizer {request.post}",
        )
    shortened = (
        Text(text.tokens[: request.tokens], text.trained[: request.tokens])
        for text in texts_of(store)
    )
    texts = list(islice((text for text in shortened if text.trained.any()), request.samples))
    if not texts:
        raise UserError(
            f"{request.data}: no text has a trained token among its first {request.tokens}",
            hint="Use a larger --tokens, or data with more trained tokens.",
        )
    return texts, f"{len(texts)} texts of {store.description.name}, sha256 {store.sha256}"


def _losses(request: MeasureRequest, texts: Sequence[Text], models: _Models, out: Path) -> _Values:
    """Measure the loss of pre, and of post after each step back that the rule needs."""
    rule = request.variant.rule
    loss_pre = models.loss(request.pre, texts, "pre")
    losses = [models.loss(request.post, texts, "post")]
    if isinstance(rule, StepBack):
        while steps_back(rule, loss_pre, losses) is None and len(losses) <= rule.max_steps:
            blend = Blend(alpha=step_back_alpha(rule, len(losses)))
            with _temporary_checkpoint(out) as folder:
                models.progress(f"writing step {len(losses)} of {rule.max_steps}")
                restore(_restore_request(request, blend), folder)
                losses.append(models.loss(folder, texts, f"step {len(losses)}"))
    return _Values(loss_pre=loss_pre, losses=tuple(losses))


@contextmanager
def _temporary_checkpoint(out: Path) -> Iterator[Path]:
    """Provide a path in a hidden folder next to `out`, which is removed before and afterwards."""
    folder = out.with_name(f".{out.name}.step")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        yield folder / "checkpoint"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _information(
    request: MeasureRequest, planned: Sequence[EditedTensor], models: _Models
) -> tuple[LayerInformation, ...]:
    assert request.random_tokens is not None, request
    by_model = []
    for name, folder in (("pre", request.pre), ("post", request.post)):
        models.progress(f"measuring the Fisher information of {name}")
        information = layer_information(models.load(folder), planned, request.random_tokens)
        if not all(map(math.isfinite, information.values())):
            raise _diverged(folder, "Fisher information")
        by_model.append(information)
    pre, post = by_model
    return tuple(LayerInformation(layer=layer, pre=pre[layer], post=post[layer]) for layer in pre)
