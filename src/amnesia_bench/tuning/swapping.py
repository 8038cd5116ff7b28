"""Turn one model in memory into any candidate: replace the weights that its shares of pre change.

The new values are computed by the same rule, from the same files and with the same rounding as in a
checkpoint that `restore` writes, so a candidate answers as that checkpoint would. The model was
loaded from post; its parameters may be pages of post's files, so they are replaced and never
written in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
        plans: the tensors with a place, by layer.
        rest: all other weights, which get one share; empty if they must stay post's.

    Attributes:
        can_change_rest: whether all other weights can be changed: they are in `rest`, and the model
            stores them as the files do.

    Raises:
        UserError: the model's parameters do not match the tensors of post's files, or a tensor is
            half of an adapter.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        pair: Pair,
        plans: Sequence[LayerPlan],
        rest: Sequence[PlannedTensor] = (),
    ) -> None:
        self.engine = engine
        self._pair = pair
        self._tensors: dict[Place, list[PlannedTensor]] = {}
        for plan in plans:
            for tensor in plan.tensors:
                assert tensor.layer is not None, tensor
                assert tensor.role is not None, tensor
                self._tensors.setdefault((tensor.layer, tensor.role), []).append(tensor)
        tuned = [tensor for tensors in self._tensors.values() for tensor in tensors]
        self._parameters = self._stored_as_in_files(tuned)
        self._rest: Sequence[PlannedTensor] = ()
        # Models do not keep every weight of a checkpoint in the form of the file.
        with suppress(UserError):
            self._parameters |= self._stored_as_in_files(rest)
            self._rest = rest
        self.can_change_rest = bool(self._rest)
        self._post = {name: parameter.data for name, parameter in self._parameters.items()}
        self.mix = Mix(())
        self._num_layers = len(pair.attention.layer_kinds)
        self.memo = engine.share_layers(sorted({layer for layer, _ in self._tensors}))

    @property
    def places(self) -> tuple[Place, ...]:
        """The layers and roles whose shares can be set."""
        return tuple(self._tensors)

    def become(self, mix: Mix) -> None:
        """Set the weights to a mix.

        Raises:
            UserError: pre or post contains NaN or infinity in a tensor that changes.
        """
        if mix == self.mix:
            return
        values = dict(self._post)
        changed = [
            (tensor, alpha)
            for layer, role, alpha in mix.shares
            for tensor in self._tensors[layer, role]
        ]
        changed += [(tensor, mix.rest) for tensor in self._rest if mix.rest]
        for tensor, alpha in changed:
            if values[tensor.name] is self._post[tensor.name]:
                post = values[tensor.name]
                values[tensor.name] = post.clone(memory_format=torch.contiguous_format)
            self._write(values[tensor.name], tensor, alpha)
        for name, value in values.items():
            self._parameters[name].data = value
        self.mix = mix
        if self.memo is not None:
            layers = [0] if mix.rest else [layer for layer, _, _ in mix.shares]
            self.memo.first_changed = min(layers, default=self._num_layers)

    def _write(self, target: Tensor, tensor: PlannedTensor, alpha: float) -> None:
        """Write the new values of the planned rows into a copy of a parameter."""
        compute = computation(Blend(alpha=alpha), self._pair, tensor)
        flat = target.view(-1)
        for piece in pieces(self._pair, [tensor]):
            if piece.owner is not None:
                new = decode(compute(piece), piece.dtype)
                flat[piece.start : piece.start + len(new)] = torch.from_numpy(new).to(target)

    def _stored_as_in_files(self, tensors: Sequence[PlannedTensor]) -> dict[str, Any]:
        """Return the parameters of tensors, after a comparison with post's files.

        Raises:
            UserError: a tensor has no parameter, or its parameter has other values.
        """
        parameters = _parameters(self.engine.module, tensors)
        for name, parameter in parameters.items():
            value = parameter.data
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
        return parameters


def _parameters(module: Any, tensors: Sequence[PlannedTensor]) -> dict[str, Any]:
    # Of tied weights, the file may have either name.
    named = module.named_parameters(remove_duplicate=False)
    by_name = {plain_name(name): value for name, value in named}
    parameters = {}
    for tensor in tensors:
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
