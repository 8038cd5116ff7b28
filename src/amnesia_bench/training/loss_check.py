"""Check that the trained loss equals the loss of the model's own forward pass.

For the check, the model's body (everything but the head) is replaced by a function that returns a
few synthetic hidden states, and the model's own forward pass computes logits and loss from them. So
only the head is computed, which is cheap on any machine and for any model size, and no random
number is drawn. The check also verifies that the body receives no other tensor than the token ids.

Shapes: T tokens, M hidden size, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast

from amnesia_bench.errors import UserError
from amnesia_bench.training.chunked_loss import chunked_cross_entropy
from amnesia_bench.training.heads import Head, head_of

_TOKENS = 9
# Scales of the synthetic hidden states, similar to those of published models. Large scales are
# needed because a soft cap only affects large logits.
_SIZES = (1.0, 4.0, 16.0)
# Tolerances relative to the largest logit: a few rounding errors of the head's dtype.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.03}


@torch.no_grad()
def check_loss(model: Any, folder: Path) -> None:
    """Compare our logits and loss at a few positions with those of the model's own forward pass.

    Args:
        model: a causal LM that is not sharded yet.
        folder: the folder of its checkpoint, for error messages.

    Raises:
        UserError: logits or loss differ, or the forward pass does more than the body and the head.
    """
    head = head_of(model)
    vocab, width = head.weight.shape
    tokens = torch.arange(_TOKENS)[None] % vocab
    waves = torch.outer(torch.arange(1.0, _TOKENS + 1), torch.arange(1.0, width + 1)).sin()
    sizes = torch.tensor(_SIZES).repeat(_TOKENS)[:_TOKENS, None]
    hidden = (waves * sizes).to(head.weight.dtype)
    logits, loss = _own_outputs(model, tokens, hidden, folder)
    our_logits = head.logits(hidden)
    tolerance = _TOLERANCES[hidden.dtype] * float(our_logits.abs().max())
    if our_logits.shape != logits.shape or not _close(our_logits, logits, tolerance):
        raise _refusal(folder, model, f"its own logits are not {_formula(head)}")
    summed = chunked_cross_entropy(hidden[:-1], head, tokens[0, 1:], _TOKENS)
    if not _close(summed / (_TOKENS - 1), loss, tolerance):
        what = f"its own loss of a few tokens is {float(loss):.6g}, and the mean cross-entropy of "
        raise _refusal(folder, model, f"{what}its logits is {float(summed) / (_TOKENS - 1):.6g}")


def _own_outputs(model: Any, tokens: Tensor, hidden: Tensor, folder: Path) -> tuple[Tensor, Tensor]:
    """Run the model's forward pass on hidden states [T, M]; return its logits [T, V] and loss."""
    body, calls = model.base_model, []

    def synthetic_forward(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return MoeModelOutputWithPast(last_hidden_state=hidden[None])

    body.forward = synthetic_forward
    try:
        output = model(input_ids=tokens, labels=tokens, use_cache=False)
        logits, loss = output.logits[0], output.loss
    except Exception as error:
        raise _refusal(
            folder, model, f"its forward pass fails without its layers ({error!r:.200})"
        ) from error
    finally:
        del body.forward
    if len(calls) != 1 or not _got_only_tokens(*calls[0], tokens):
        raise _refusal(folder, model, "its forward pass does more than its layers and its head")
    return logits, loss


def _got_only_tokens(args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor) -> bool:
    """Return whether the token ids are the only tensor argument of the body.

    The result is also False if the body is asked for router logits.
    """
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    return len(tensors) == 1 and tensors[0] is tokens and not kwargs.get("output_router_logits")


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=0, atol=tolerance)


def _formula(head: Head) -> str:
    bias = "" if head.bias is None else " + b"
    text = f"{head.scale:g} (W h{bias})"
    return text if head.cap is None else f"{head.cap:g} tanh({text} / {head.cap:g})"


def _refusal(folder: Path, model: Any, why: str) -> UserError:
    hint = "Train it with the library that it comes from."
    if getattr(model.config, "output_router_logits", False):
        why = "its config.json enables the router loss (output_router_logits)"
        hint = 'Set "output_router_logits": false there to train without it.'
    return UserError(
        f"{folder}: the trained loss would not be that of a {model.config.model_type} model: {why}",
        hint=hint,
    )
