"""Watch a computation on a CPU for what would cost time or memory on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = frozenset(
    (
        "torch.Tensor.__bool__",
        "torch.Tensor.__float__",
        "torch.Tensor.__index__",
        "torch.Tensor.__int__",
        "torch.Tensor.cpu",
        "torch.Tensor.item",
        "torch.Tensor.nonzero",
        "torch.Tensor.numpy",
        "torch.Tensor.tolist",
        "torch.equal",
        "torch.masked_select",
        "torch.nonzero",
    )
)
_FACTORIES = frozenset(("torch.rand", "torch.tensor"))


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


class DeviceWaits(TorchFunctionMode):
    """Treat CPU tensors as tensors on a GPU, and count the calls for which the host would wait.

    Tensors count as host memory if they result from `Tensor.cpu`, from `torch.tensor` or
    `torch.rand` without a device, or from such tensors only. Copies to the device count unless they
    are `non_blocking`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._host: dict[int, Tensor] = {}  # by id; the values keep the ids from being used again

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(func) or ""
        operands = _tensors(args, kwargs)
        on_host = all(id(tensor) in self._host for tensor in operands)
        if operands and not on_host and (name in _READS or _selects_by_mask(name, args)):
            self.counts[name] += 1
        result = func(*args, **kwargs)
        if name == "torch.Tensor.cpu":
            result = result.clone()
        if operands and on_host and _moves(name, args, kwargs):
            result = result.clone()
            if not kwargs.get("non_blocking", False):
                self.counts[name] += 1
        elif (operands and on_host) or name == "torch.Tensor.cpu":
            self._mark(result)
        elif name in _FACTORIES and not operands:
            if kwargs.get("device") is None:
                self._mark(result)
            else:
                self.counts[name] += 1
        return result

    def _mark(self, result: Any) -> None:
        self._host |= {id(tensor): tensor for tensor in _tensors(result)}


def _moves(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call is `Tensor.to` with a device, not only with a dtype."""
    named = any(isinstance(arg, torch.device | str) for arg in args)
    return name == "torch.Tensor.to" and (named or "device" in kwargs)


def _selects_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    return name == "torch.Tensor.__getitem__" and any(
        index.dtype == torch.bool for index in _tensors(args[1:])
    )


class AllocatedBytes(TorchDispatchMode):
    """Count the bytes of all storages that the operations in the block allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        known = {tensor.untyped_storage()._cdata for tensor in _tensors(args, kwargs)}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                self.total += storage.nbytes()
        return result
