"""GPUs that are not there: CPU tensors that say they lie on CUDA devices and refuse to be mixed, as those of CUDA do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

CPU = torch.device("cpu")
_COPYING = ("copy_", "_has_compatible_shallow_copy_type")
_INDEXING = ("__setitem__", "__getitem__", "index_put_")


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met."""


class PretendedDevices(TorchFunctionMode):
    """While it is entered `.to("cuda:1")` and `device="cuda:1"` make CPU tensors that are taken to be there.

    What operations on them give lies where they lie. MixedDevicesError where tensors of two devices meet, numbers (of no
    dimension) on the CPU aside.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: Any = WeakIdKeyDictionary()

    def place(self, tensor: torch.Tensor) -> torch.device:
        """Where the tensor is taken to be."""
        return self._places.get(tensor, CPU)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return self.place(args[0])
        if func == torch.Tensor.data.__set__:
            func(*args)
            self._places[args[0]] = self.place(args[1])
            return None
        if name in ("cpu", "cuda") and isinstance(args[0], torch.Tensor):
            return self._put(args[0].clone(), CPU if name == "cpu" else torch.device("cuda", 0))
        if func is torch.autograd.grad:
            inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
            found = func(*args, **kwargs)
            for gradient, one in zip(found, [inputs] if isinstance(inputs, torch.Tensor) else inputs, strict=True):
                if gradient is not None:
                    self._put(gradient, self.place(one))
            return found
        asked, args = self._asked(name, args, kwargs)
        found = func(*args, **kwargs)
        where = asked or self._common(name, args, kwargs)
        for tensor in _tensors(found):
            self._put(tensor, where)
        return found

    def _put(self, tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
        self._places[tensor] = place
        return tensor

    def _asked(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[torch.device | None, Sequence[Any]]:
        """The device that a call names, and its arguments with the CPU in its place."""
        if kwargs.get("device") is not None:
            place, kwargs["device"] = _device(kwargs["device"]), CPU
            return place, args
        if name == "to" and len(args) > 1:
            first = args[1]
            if isinstance(first, torch.Tensor | str | torch.device):
                place = self.place(first) if isinstance(first, torch.Tensor) else _device(first)
                moved = args[0] if place == self.place(args[0]) else args[0].clone()
                return place, (moved, first.dtype if isinstance(first, torch.Tensor) else CPU, *args[2:])
        return None, args

    def _common(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.device:
        tensors = list(_tensors([args, kwargs]))
        places = {self.place(tensor) for tensor in tensors if tensor.dim() or self.place(tensor) != CPU}
        if name in _COPYING or (name in _INDEXING and places <= {self.place(tensors[0]), CPU}):
            return self.place(tensors[0])
        if len(places) > 1:
            raise MixedDevicesError(f"{name}: tensors on {sorted(map(str, places))}")
        return places.pop() if places else CPU


def _device(name: str | torch.device) -> torch.device:
    place = torch.device(name)
    return torch.device("cuda", place.index or 0) if place.type == "cuda" else place


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
