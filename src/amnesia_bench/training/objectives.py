"""The training objectives: one module per kind of stage, whose forward returns a summed loss.

Each objective computes its loss inside the outermost FSDP module, where the head's weights are
gathered. Losses are summed in float32. The loop divides the sum by the count of the complete step,
so neither gradient accumulation nor the number of processes changes the result.

Shapes: B batch, T tokens, M hidden size, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.modeling.causal_attention import PACKED_SDPA
from amnesia_bench.modeling.mixers import MixerInputs
from amnesia_bench.modeling.token_layout import TokenInputs, lay_out
from amnesia_bench.training.batches import MicroBatch
from amnesia_bench.training.blocks import let_documents_vary
from amnesia_bench.training.chunked_loss import chunked_cross_entropy, chunked_kl
from amnesia_bench.training.heads import Head, head_of, trainable

# Before its commit 5438a19, the released code computed the KL of only this many positions per
# micro-batch.
PARITY_KD_ROWS = 512


class Teacher(nn.Module):
    """A frozen causal LM that provides hidden states, in a separate FSDP wrapper.

    Objectives store it in a tuple, so that PyTorch does not register it as a submodule. So neither
    the optimizer nor checkpoints include it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Head]:
        """Return the final hidden states [B, T, M] and the head that maps them to logits."""
        hidden = self.model.base_model(input_ids, use_cache=False).last_hidden_state
        return hidden, head_of(self.model)


class NextToken(nn.Module):
    """The objective of stage 3 and SFT: cross-entropy of the next token at trained positions."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, run: TrainingRun, student: Any) -> None:
        super().__init__()
        self.student = student
        self._rows = run.train.loss_chunk_rows
        self._compiled = run.train.compile

    def count(self, batch: MicroBatch) -> int:
        """Return the weight of this micro-batch in the mean: the number of trained positions."""
        return len(batch.targets)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the summed loss and an empty tensor, since there are no metrics per layer."""
        if self._compiled and batch.packed is not None:
            let_documents_vary(batch.packed)
        hidden = hidden_states(self.student, batch).flatten(0, 1)
        chosen = hidden.index_select(0, batch.targets_at)
        loss = chunked_cross_entropy(chosen, head_of(self.student), batch.targets, self._rows)
        return loss, loss.new_empty(0)


class Distill(nn.Module):
    """The objective of stage 2: KL(teacher || student) at temperature 1.

    It covers all positions, or the first PARITY_KD_ROWS of a micro-batch with kd_rows=first512.
    """

    metric_names: tuple[str, ...] = ()

    def __init__(self, run: TrainingRun, student: Any, teacher: Teacher) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)
        self._rows = run.train.loss_chunk_rows
        self._limit = PARITY_KD_ROWS if run.recipe.kd_rows == "first512" else None
        self._dtype = torch.bfloat16 if run.recipe.kd_dtype == "bf16" else torch.float32

    def count(self, batch: MicroBatch) -> int:
        """Return the weight of this micro-batch in the mean: the number of its positions."""
        return batch.input_ids.numel()

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the summed loss and an empty tensor, since there are no metrics per layer."""
        teacher_hidden, teacher_head = self._teacher[0](batch.input_ids)
        student_hidden = hidden_states(self.student, batch)
        rows = slice(self._limit)
        loss = chunked_kl(
            (student_hidden.flatten(0, 1)[rows], head_of(self.student)),
            (teacher_hidden.flatten(0, 1)[rows], teacher_head),
            self._rows,
            self._dtype,
        )
        return loss, loss.new_empty(0)


class Align(nn.Module):
    """The objective of stage 1: each lightning mixer imitates its layer's attention in the teacher.

    A mixer receives the input of the teacher's attention, so layers learn independently of each
    other. The loss is the squared difference between the outputs of the mixer and of the attention,
    averaged over layers, positions and channels.
    """

    def __init__(self, student: Any, teacher: Teacher, layers: Sequence[int]) -> None:
        super().__init__()
        self.mixers = nn.ModuleDict(
            {str(i): student.base_model.layers[i].self_attn for i in layers}
        )
        self.rotary = student.base_model.lightning_rotary_emb
        self.metric_names = tuple(f"mse_layer_{i}" for i in layers)
        self._config = student.config
        self._teacher = (teacher,)
        self._attentions = tuple(teacher.model.base_model.layers[i].self_attn for i in layers)
        for attention in self._attentions:
            attention.register_forward_hook(_record, with_kwargs=True)

    def count(self, batch: MicroBatch) -> int:
        """Return the weight of this micro-batch in the mean: the number of its positions."""
        return batch.input_ids.numel()

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over positions, and the detached losses of the layers [L]."""
        self._teacher[0](batch.input_ids)
        inputs: MixerInputs | None = None
        errors = []
        for mixer, attention in zip(self.mixers.values(), self._attentions, strict=True):
            attention_input, target = attention.recorded
            del attention.recorded
            inputs = self._inputs(attention_input) if inputs is None else inputs
            mixed, _ = mixer(attention_input, inputs)
            precise = torch.float64 if mixed.dtype == torch.float64 else torch.float32
            error = (mixed.to(precise) - target.to(precise)).square().mean(dim=-1).sum()
            errors.append(error)
        by_layer = torch.stack(errors)
        return by_layer.mean(), by_layer.detach()

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


def _record(attention: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
    """Store input and output in the module: with any other place, each layer would be compiled."""
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    attention.recorded = hidden.detach(), output[0].detach()


def isolate_without_mask(model: Any) -> None:
    """Make softmax layers attend per document in models that would otherwise need a T x T mask."""
    if trainable(model.config.model_type).documents == "positions":
        model.set_attn_implementation(PACKED_SDPA)


def hidden_states(model: Any, batch: MicroBatch) -> Tensor:
    """Return the final hidden states [B, T, M] ([1, B * T, M] for isolated documents)."""
    layout: dict[str, Any] = {}
    if batch.packed is not None:
        if trainable(model.config.model_type).documents == "positions":
            layout = {"position_ids": batch.packed.positions(), "packed": batch.packed}
        else:
            layout = {"cu_seqlens": batch.packed}
    output = model.base_model(batch.input_ids, use_cache=False, **layout)
    hidden: Tensor = output.last_hidden_state
    return hidden
