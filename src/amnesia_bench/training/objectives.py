"""What is learned in each stage: a module per objective, whose forward returns a summed loss.

The loss lives inside the module that FSDP wraps last, where the weights of the head are whole.
The sum is in float32; dividing by the count of the whole step is the loop's business, so that
neither accumulation nor the number of processes changes the result.

Shapes: B batch, T tokens, M hidden size, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.modeling.causal_attention import PACKED_SDPA
from amnesia_bench.modeling.mixers import MixerInputs
from amnesia_bench.modeling.token_layout import TokenInputs, lay_out
from amnesia_bench.training.batches import MicroBatch
from amnesia_bench.training.chunked_loss import chunked_cross_entropy, chunked_kl
from amnesia_bench.training.heads import Head, head_of, trainable

# Rows of a micro-batch that the released code's KL took in, until its commit 5438a19.
PARITY_KD_ROWS = 512


class Teacher(nn.Module):
    """A frozen causal LM that is asked for hidden states. It has an FSDP tree of its own.

    Objectives keep it in a tuple: it is no part of them, so neither optimizer nor checkpoint
    sees it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Head]:
        """Return the hidden states before the head [B, T, M] and the head."""
        hidden = self.model.base_model(input_ids, use_cache=False).last_hidden_state
        return hidden, head_of(self.model)


class NextToken(nn.Module):
    """Stage 3 and SFT: cross-entropy of the next token, over the trained tokens."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, run: TrainingRun, student: Any) -> None:
        super().__init__()
        self.student = student
        self._rows = run.train.loss_chunk_rows

    def count(self, batch: MicroBatch) -> int:
        """Return by how much the loss of this micro-batch counts in a mean."""
        return len(batch.targets)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the summed loss, and no further metrics."""
        hidden = hidden_states(self.student, batch).flatten(0, 1)
        chosen = hidden.index_select(0, batch.targets_at)
        loss = chunked_cross_entropy(chosen, head_of(self.student), batch.targets, self._rows)
        return loss, loss.new_empty(0)


class Distill(nn.Module):
    """Stage 2: KL(teacher || student) at every position, temperature 1."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, run: TrainingRun, student: Any, teacher: Teacher) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)
        self._rows = run.train.loss_chunk_rows
        self._limit = PARITY_KD_ROWS if run.recipe.kd_rows == "first512" else None
        self._dtype = torch.bfloat16 if run.recipe.kd_dtype == "bf16" else torch.float32

    def count(self, batch: MicroBatch) -> int:
        """Return by how much the loss of this micro-batch counts in a mean."""
        return batch.input_ids.numel()

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the summed loss, and no further metrics."""
        theirs, their_head = self._teacher[0](batch.input_ids)
        ours = hidden_states(self.student, batch)
        taken = slice(self._limit)
        loss = chunked_kl(
            (ours.flatten(0, 1)[taken], head_of(self.student)),
            (theirs.flatten(0, 1)[taken], their_head),
            self._rows,
            self._dtype,
        )
        return loss, loss.new_empty(0)


class Align(nn.Module):
    """Stage 1: each lightning mixer imitates the attention of its layer in the teacher.

    It is given what the teacher's attention was given, so layers learn independently of each
    other. The loss is the mean over layers, positions and channels of the squared error of what
    the mixer adds to the residual stream.
    """

    def __init__(
        self, run: TrainingRun, student: Any, teacher: Teacher, layers: Sequence[int]
    ) -> None:
        super().__init__()
        self.mixers = nn.ModuleDict(
            {str(i): student.base_model.layers[i].self_attn for i in layers}
        )
        self.rotary = student.base_model.lightning_rotary_emb
        self.metric_names = tuple(f"mse_layer_{i}" for i in layers)
        self._config = student.config
        self._recompute = run.train.activation_checkpointing
        self._teacher = (teacher,)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        for i in layers:
            attention = teacher.model.base_model.layers[i].self_attn
            attention.register_forward_hook(self._recorder(i), with_kwargs=True)

    def count(self, batch: MicroBatch) -> int:
        """Return by how much the loss of this micro-batch counts in a mean."""
        return batch.input_ids.numel()

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over positions, and the same for each layer [L], detached."""
        self._seen.clear()
        self._teacher[0](batch.input_ids)
        inputs: MixerInputs | None = None
        errors = []
        for layer, mixer in self.mixers.items():
            given, wanted = self._seen.pop(int(layer))
            inputs = self._inputs(given) if inputs is None else inputs
            if self._recompute:
                mixed, _ = checkpoint(mixer, given, inputs, use_reentrant=False)
            else:
                mixed, _ = mixer(given, inputs)
            precise = torch.float64 if mixed.dtype == torch.float64 else torch.float32
            error = (mixed.to(precise) - wanted.to(precise)).square().mean(dim=-1).sum()
            errors.append(error)
        by_layer = torch.stack(errors)
        return by_layer.mean(), by_layer.detach()

    def _recorder(self, layer: int) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._seen[layer] = given.detach(), output[0].detach()

        return record

    def _inputs(self, hidden: Tensor) -> MixerInputs:
        layout = lay_out(
            TokenInputs(
                batch=hidden.shape[0],
                num_tokens=hidden.shape[1],
                num_cached=0,
                device=hidden.device,
                attention_mask=None,
                position_ids=None,
                cu_seqlens=None,
                has_cache=False,
            ),
            self._config,
        )
        rotation = None if self.rotary is None else self.rotary(hidden, layout.position_ids)
        return MixerInputs(
            layout=layout,
            cache=None,
            softmax_rotation=None,
            lightning_rotation=rotation,
            query_scale=None,
            softmax_mask=None,
            want_weights=False,
        )


def isolate_without_mask(model: Any) -> None:
    """Let softmax layers work document by document, where a mask of T x T is all they have."""
    if trainable(model.config.model_type).documents == "positions":
        model.set_attn_implementation(PACKED_SDPA)


def hidden_states(model: Any, batch: MicroBatch) -> Tensor:
    """Return the hidden states before the head [B, T, M]; documents are isolated as packed."""
    where: dict[str, Any] = {}
    if batch.packed is not None:
        if trainable(model.config.model_type).documents == "positions":
            where = {"position_ids": batch.packed.positions(), "packed": batch.packed}
        else:
            where = {"cu_seqlens": batch.packed}
    output = model.base_model(batch.input_ids, use_cache=False, **where)
    hidden: Tensor = output.last_hidden_state
    return hidden
