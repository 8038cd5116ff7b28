"""Measure losses on texts, and the diagonal Fisher information on random tokens.

Shapes: T tokens of a text, V vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from amnesia_bench.analysis.texts import Text
from amnesia_bench.errors import UserError
from amnesia_bench.records.restoration import EditedTensor
from amnesia_bench.requests.checkpoints import RandomTokens
from amnesia_bench.weights.names import plain_name

# Number of positions whose float32 logits are in memory at once.
_LOSS_POSITIONS = 256


def mean_loss(module: Any, texts: Sequence[Text]) -> float:
    """Return the mean loss over the trained tokens of all texts, in nats per token."""
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            logits = _logits(module, text.tokens)
            targets = torch.from_numpy(text.tokens.astype(np.int64))[1:]
            positions = torch.from_numpy(np.flatnonzero(text.trained[1:]))
            for chunk in torch.split(positions, _LOSS_POSITIONS):
                rows = logits[chunk.to(logits.device)].float()
                right = rows.gather(1, targets[chunk, None].to(rows.device))[:, 0]
                # On a CPU, cross_entropy in float32 is less precise: for 262,144 tokens its error
                # is 5e-5, and the same in all losses.
                total += float((rows.logsumexp(-1) - right).double().sum())
            count += len(positions)
    return total / count


def _logits(module: Any, tokens: NDArray[np.int32]) -> Tensor:
    """Return the logits [T - 1, V] that predict the second to the last token of a text."""
    device = module.get_input_embeddings().weight.device
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(device)
    logits: Tensor = module(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits


def layer_information(
    module: Any,
    planned: Sequence[EditedTensor],
    random_tokens: RandomTokens,
) -> dict[int | None, float]:
    """Return the mean diagonal Fisher information of each layer's planned weights.

    For each text, the targets are drawn from the model's own predictions, and the gradient of their
    log-likelihood is squared; its mean over texts is an unbiased estimate of the diagonal. If the
    predictions are not finite, all values are NaN.

    Args:
        module: a transformers model.
        planned: the tensors and the rows that a restore replaces.
        random_tokens: the number, length and seed of the texts, which are drawn uniformly.

    Raises:
        UserError: the model's parameters are named differently from the tensors of its checkpoint.
    """
    parameters = _parameters_of(module, planned)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    sums: dict[int | None, float] = {}
    counts: dict[int | None, int] = {}
    generator = torch.Generator().manual_seed(random_tokens.seed)
    vocabulary = module.get_input_embeddings().weight.shape[0]
    shape = (random_tokens.samples, random_tokens.tokens)
    texts = np.random.default_rng(random_tokens.seed).integers(0, vocabulary, shape, np.int32)
    for tokens in texts:
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            logits = _logits(module, tokens).float()
            chances = torch.softmax(logits.detach(), -1).cpu()
            if not chances.isfinite().all():
                return {tensor.layer: math.nan for tensor in planned}
            targets = torch.multinomial(chances, 1, generator=generator)[:, 0]
            cross_entropy(logits, targets.to(logits.device), reduction="sum").backward()  # type: ignore[no-untyped-call]
        for tensor in planned:
            for squares in _squared_gradients(parameters, tensor):
                sums[tensor.layer] = sums.get(tensor.layer, 0.0) + float(squares.sum())
                counts[tensor.layer] = counts.get(tensor.layer, 0) + squares.numel()
    module.zero_grad(set_to_none=True)
    return {layer: sums[layer] / counts[layer] for layer in sums}


def _squared_gradients(parameters: Mapping[str, Tensor], tensor: EditedTensor) -> Sequence[Tensor]:
    """Return the squared gradients of a tensor's planned rows; none if it is a tied copy."""
    if tensor.name not in parameters:
        return []
    gradient = parameters[tensor.name].grad
    if gradient is None:  # this parameter does not affect the logits
        gradient = torch.zeros_like(parameters[tensor.name])
    rows = gradient.reshape(len(gradient), -1) if gradient.dim() else gradient.reshape(1, 1)
    return [rows[start:stop].double().square() for start, stop in tensor.rows]


def _parameters_of(module: Any, planned: Sequence[EditedTensor]) -> dict[str, Tensor]:
    """Map the name of each planned tensor to the model's parameter."""
    by_name = {plain_name(name): value for name, value in module.named_parameters()}
    tied = module.get_output_embeddings()
    parameters = {}
    for tensor in planned:
        name = plain_name(tensor.name)
        if name in by_name:
            parameters[tensor.name] = by_name[name]
        elif name not in dict(module.named_buffers()) and (
            tied is None or not name.endswith("lm_head.weight")
        ):
            raise UserError(
                f"{type(module).__name__} has no parameter {name}: its parameter names differ from "
                "the tensor names of its checkpoint"
            )
    return parameters
