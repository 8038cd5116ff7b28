"""Turn one model in memory into any candidate: replace the weights that its shares of pre change.

The new values are computed by the same rule, from the same files and with the same rounding as in a
checkpoint that `restore` writes, so a candidate answers as that checkpoint would. The model was
loaded from post; its parameters may be pages of post's files, so they are replaced and never
written in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amnesia_bench.config.schema import Blend
from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import Engine, PromptRequest
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.records.roles import Role
from amnesia_bench.surgery.elementwise import computation
from amnesia_bench.surgery.layer_values import Pair
from amnesia_bench.surgery.plan import LayerPlan, PlannedTensor
from amnesia_bench.surgery.tensor_pieces import pieces
from amnesia_bench.tuning.space import Mix
from amnesia_bench.weights.names import plain_name
from amnesia_bench.weights.numbers import decode

Place = tuple[int, Role]


class SwappedModel:
    """A model whose tuned tensors can be set to any mix of pre and post.

    Args:
        engine: the engine with the model of post.
        pair: the files of pre and post.
        plans: the tensors that may be changed, by layer.

    Raises:
        UserError: the model's parameters do not match the tensors of post's files, or a tensor is
            half of an adapter.
    """

    def __init__(self, engine: TransformersEngine, pair: Pair, plans: Sequence[LayerPlan]) -> None:
        self.engine = engine
        self._pair = pair
        self._tensors: dict[Place, list[PlannedTensor]] = {}
        for plan in plans:
            for tensor in plan.tensors:
                assert tensor.layer is not None, tensor
                assert tensor.role is not None, tensor
                self._tensors.setdefault((tensor.layer, tensor.role), []).append(tensor)
        self._parameters = _parameters(engine.module, self._tensors)
        self._post = {name: parameter.data for name, parameter in self._parameters.items()}
        self._check_post()
        self.mix = Mix(())
        self._num_layers = len(pair.attention.layer_kinds)
        self.memo = engine.share_layers(sorted({layer for layer, _ in self._tensors}))

    @property
    def places(self) -> tuple[Place, ...]:
        """The layers and roles whose shares can be set."""
        return tuple(self._tensors)

    def become(self, mix: Mix) -> None:
        """Set the tuned tensors to a mix; all others are post's.

        Raises:
            UserError: pre or post contains NaN or infinity in a tensor that changes.
        """
        if mix == self.mix:
            return
        values = dict(self._post)
        for layer, role, alpha in mix.shares:
            for tensor in self._tensors[layer, role]:
                if values[tensor.name] is self._post[tensor.name]:
                    post = values[tensor.name]
                    values[tensor.name] = post.clone(memory_format=torch.contiguous_format)
                self._write(values[tensor.name], tensor, alpha)
        for name, value in values.items():
            self._parameters[name].data = value
        self.mix = mix
        if self.memo is not None:
            self.memo.first_changed = min(
                (layer for layer, _, _ in mix.shares), default=self._num_layers
            )

    def _write(self, target: Tensor, tensor: PlannedTensor, alpha: float) -> None:
        """Write the new values of the planned rows into a copy of a parameter."""
        compute = computation(Blend(alpha=alpha), self._pair, tensor)
        flat = target.view(-1)
        for piece in pieces(self._pair, [tensor]):
            if piece.owner is not None:
                new = decode(compute(piece), piece.dtype)
                flat[piece.start : piece.start + len(new)] = torch.from_numpy(new).to(target)

    def _check_post(self) -> None:
        """Compare each parameter with the tensor of post's files that it should contain."""
        for name, value in self._post.items():
            _, entry = self._pair.post.tensors[name]
            stored = decode(self._pair.post.read(name), entry.dtype).reshape(entry.shape)
            if tuple(value.shape) != entry.shape or not torch.allclose(
                torch.from_numpy(stored).to(value), value, rtol=0, atol=0, equal_nan=True
            ):
                raise UserError(
                    f"{self._pair.post.folder}: the model in memory stores {name!r} in another "
                    "form than the file, so its weights cannot be exchanged",
                    hint="Save the checkpoint again with transformers' save_pretrained.",
                )


def _parameters(module: Any, tensors: Mapping[Place, Sequence[PlannedTensor]]) -> dict[str, Any]:
    by_name = {plain_name(name): value for name, value in module.named_parameters()}
    parameters = {}
    for planned in tensors.values():
        for tensor in planned:
            if plain_name(tensor.name) not in by_name:
                raise UserError(
                    f"{type(module).__name__} has no parameter {plain_name(tensor.name)}: its "
                    "parameter names differ from the tensor names of its checkpoint"
                )
            parameters[tensor.name] = by_name[plain_name(tensor.name)]
    return parameters


class MixEngine:
    """The `Engine` of one mix: the model becomes the mix when it has to answer.

    Args:
        model: the model of all mixes.
        engine: the engine that runs it, with its wrappers.
        mix: the mix that answers.
    """

    def __init__(self, model: SwappedModel, engine: Engine, mix: Mix) -> None:
        self._model, self._engine, self._mix = model, engine, mix

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of the engine, which are the same for all mixes."""
        return self._engine.settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; see `Engine.generate`."""
        self._model.become(self._mix)
        yield from self._engine.generate(requests)
