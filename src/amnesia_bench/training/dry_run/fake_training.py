"""Build the real learner and run the real training loop on tensors without data.

Every tensor is a `FakeTensor`, which has a shape and a dtype but no memory, and collectives go to
PyTorch's fake process group, which returns at once. So the training step of a model of any size,
over any number of GPUs, runs on a CPU in a minute, and all its operations can be observed. The
process that runs here is rank 0, whose shards are the largest.

Only these parts differ from a real run: the weights (from a config), the data (documents of equal
length, every token trained), the attention (see `kernels`), and the values that the loop reads from
tensors (all are 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

import amnesia_bench.modeling  # noqa: F401 - registers HypeNet with transformers' auto classes
from amnesia_bench.config.assumptions import DOCUMENTS_PER_SEQUENCE, processes_per_node
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.training.batches import Batches, FileOrder
from amnesia_bench.training.dry_run.kernels import kernels_of_a_gpu
from amnesia_bench.training.dry_run.phases import PhaseTracker
from amnesia_bench.training.freezing import frozen_tensors
from amnesia_bench.training.heads import trainable
from amnesia_bench.training.loop import Loop, LoopParts
from amnesia_bench.training.models import Learner, assemble_learner
from amnesia_bench.training.processes import Processes, device_mesh
from amnesia_bench.training.sharding import DTYPES

Result = TypeVar("Result")

# More micro-batches need no more memory, and every one is alike.
_MICRO_BATCHES_PER_STEP = 2


@dataclass(frozen=True, kw_only=True)
class FakeTraining:
    """A training run on tensors without data.

    Attributes:
        run: the run, with at most two micro-batches per step.
        micro_batches: the number of micro-batches per step.
        documents: the number of documents per sequence.
        tracker: the current phase of the step.
        learner: the sharded models and the objective.
    """

    run: TrainingRun
    micro_batches: int
    documents: int
    tracker: PhaseTracker
    learner: Learner
    _batches: Batches
    _processes: Processes

    def run_steps(self, after_step: Sequence[Callable[[], None]]) -> None:
        """Run one step of the training loop for each function, which is called after the step."""
        train = self.run.train.model_copy(update={"steps": len(after_step)})
        remaining = iter(after_step)
        parts = LoopParts(
            run=self.run.model_copy(update={"train": train}),
            learner=self.learner,
            batches=self._batches,
            checkpoints=_NoCheckpoints(),  # type: ignore[arg-type]
            processes=self._processes,
            record=lambda *_: next(remaining)(),
            stop_requested=lambda: False,
        )
        loop = Loop(parts)
        loop.start()
        with self.tracker.following(self.learner.objective):
            loop.run(0)


@contextmanager
def fake_training(
    run: TrainingRun,
    model: Mapping[str, Any],
    processes: int,
    observers: Callable[[PhaseTracker], Sequence[TorchDispatchMode]] = lambda _: (),
) -> Iterator[FakeTraining]:
    """Build a training run on tensors without data, which can be run within the block.

    Args:
        run: the stage and the recipe.
        model: the values of the student's config.json.
        processes: the number of GPUs.
        observers: returns the modes that are to see every operation, including those that build
            the models.

    Raises:
        UserError: the global batch is not divisible by processes x micro-batch.
    """
    tracker, rows = PhaseTracker(), _Rows(run, _documents(run, model))
    order = FileOrder([rows.num_sequences])
    whole = Batches(run, {"rows": rows}, order, rank=0, size=processes)
    micro_batches = min(whole.accumulation, _MICRO_BATCHES_PER_STEP)
    batch = run.train.micro_batch * processes * micro_batches
    run = run.model_copy(update={"train": run.train.model_copy(update={"global_batch": batch})})
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        group = _FakeProcesses(processes)
        with ExitStack() as stack:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(_OnlyOnes())
            for observer in observers(tracker):
                stack.enter_context(observer)
            stack.enter_context(kernels_of_a_gpu())
            yield FakeTraining(
                run=run,
                micro_batches=micro_batches,
                documents=rows.documents,
                tracker=tracker,
                learner=_learner(run, model, group),
                _batches=Batches(run, {"rows": rows}, order, rank=0, size=processes),
                _processes=group,
            )
    finally:
        dist.destroy_process_group()


def _documents(run: TrainingRun, model: Mapping[str, Any]) -> int:
    packs = run.isolate_documents and trainable(model.get("model_type")).documents != "alone"
    return DOCUMENTS_PER_SEQUENCE if packs else 1


def _learner(run: TrainingRun, model: Mapping[str, Any], processes: Processes) -> Learner:
    if run.train.objective == "align":  # stage 1: no layer is a softmax layer yet
        model = {**model, "mixer_types": ["lightning-attn"] * model["num_hidden_layers"]}
    student = _build(model, DTYPES[run.recipe.master_dtype])
    teacher = None
    if run.train.objective != "next_token":
        teacher = _build(teacher_config(model), DTYPES[run.train.compute_dtype])
    shapes = {name: tuple(value.shape) for name, value in student.named_parameters()}
    frozen = frozen_tensors(run.train.freeze, model, shapes, run.train.name)
    return assemble_learner(run, student, teacher, frozen, processes)


def _build(model: Mapping[str, Any], dtype: torch.dtype) -> Any:
    values = dict(model)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    auto: Any = AutoModelForCausalLM  # its methods are not typed
    return auto.from_config(config, dtype=dtype)


def teacher_config(student: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the Qwen3 model from which a HypeNet with this config is converted.

    Its head is untied, as that of the 9B model's teacher: the larger case.
    """
    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    )
    shared = {key: student[key] for key in keys}
    return {"model_type": "qwen3", "tie_word_embeddings": False, **shared}


class _FakeProcesses(Processes):
    """Rank 0 of a group in which every process has the same values."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size
        self.device = torch.device("cpu")
        self.mesh = device_mesh("cpu", size, processes_per_node(size))

    @property
    def on_gpus(self) -> bool:
        return True

    def sums(self, values: Sequence[int]) -> list[int]:
        return [value * self.size for value in values]

    def on_first(self, call: Callable[[], Result]) -> Result:
        return call()

    def agree(self, failure: AmnesiaError | None) -> None:
        if failure is not None:
            raise failure


class _NoCheckpoints:
    """Takes the place of the folder of checkpoints: it is empty, and nothing is saved."""

    def newest(self) -> None:
        return None

    def poll(self) -> bool:
        return False

    def save(self, *_: object) -> None:
        return None

    def wait(self) -> None:
        return None


class _OnlyOnes(TorchDispatchMode):
    """Returns 1 for every value that is read from a tensor without data: a loss, a norm."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Row:
    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    document_lengths: tuple[int, ...]


class _Rows:
    """Endless prepared data: rows of documents of equal length, all of whose tokens are trained."""

    tokenizer_sha256 = ""
    vocab_size = 1
    packs_documents = True
    num_sequences = 1

    def __init__(self, run: TrainingRun, documents: int) -> None:
        self.documents = documents
        self.sequence_tokens = run.train.sequence_tokens
        self.isolate_documents = run.isolate_documents

    def sequence(self, index: int) -> _Row:
        tokens = self.sequence_tokens
        ends = [tokens * (i + 1) // self.documents for i in range(self.documents)]
        return _Row(
            tokens=np.zeros(tokens, dtype=np.int32),
            loss_mask=np.ones(tokens, dtype=np.bool_),
            document_lengths=tuple(b - a for a, b in zip([0, *ends], ends, strict=False)),
        )
