"""A device that is not there: wrong mixtures of devices fail as they would on a GPU.

Everything runs on the processor. A mode keeps which storages are pretended to be elsewhere, answers
`tensor.device` accordingly, and refuses each operation for which torch would want one device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE, ELSEWHERE = torch.device("cpu"), torch.device("cuda", 0)

_COPIES = ("aten::copy_", "aten::_to_copy")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index")
_TO_NUMPY = (Tensor.numpy, Tensor.__array__)
_DEVICE_OF = Tensor.device.__get__  # pyright: ignore[reportAttributeAccessIssue]
_IS_CUDA = Tensor.is_cuda.__get__  # pyright: ignore[reportAttributeAccessIssue]


def _plain(tensor: Tensor) -> Tensor:
    """What stands behind the wrappers of torch.func."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


class _Places(TorchDispatchMode):
    """Knows where each storage is, and looks at every operation below torch.func."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.known: dict[int, tuple[torch.device | None, Any]] = {}
        self.target: torch.device | None = None

    def of(self, tensor: Tensor) -> torch.device | None:
        """Where a tensor is; None for zeros that autograd made, which fit to anything."""
        if tensor.layout is not torch.strided:
            return HERE
        storage = _plain(tensor).untyped_storage()
        return self.known.get(storage._cdata, (HERE, None))[0]

    def put(self, tensor: Tensor, device: torch.device | None) -> None:
        storage = tensor.untyped_storage()
        if self.known.get(storage._cdata, (None,))[0] is None:
            self.known[storage._cdata] = device, storage  # held, so that none is reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        where = self._where(name, args, given)
        drawn = any(isinstance(leaf, Generator) for leaf in tree_leaves((args, kwargs)))
        if drawn and where == ELSEWHERE:
            raise RuntimeError(f"{name}: expected a 'cuda' generator, found one of 'cpu'")
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self.put(leaf, where)
        return out

    def _where(self, name: str, args: Any, given: list[Tensor]) -> torch.device | None:
        if self.target is not None and (not given or name in _COPIES or name == "aten::clone"):
            return self.target
        if name in _COPIES:
            return self.of(args[0])
        if name in _INDEXED:
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            if self.of(args[0]) == HERE and any(self.of(i) == ELSEWHERE for i in indices):
                raise RuntimeError(f"{name}: indices should be on the same device as the tensor")
            given = [args[0], *(leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, Tensor))]
        placed = {self.of(tensor) for tensor in given if tensor.ndim} - {None}
        if len(placed) > 1:
            shapes = [(tuple(t.shape), str(self.of(t))) for t in given]
            raise RuntimeError(f"{name}: expected all tensors on one device, got {shapes}")
        if placed:
            if placed == {HERE} and any(self.of(t) == ELSEWHERE for t in given):
                raise RuntimeError(f"{name}: a number elsewhere meets a tensor that is here")
            return placed.pop()
        found = {self.of(t) for t in given}
        return next((device for device in (ELSEWHERE, HERE) if device in found), None)


class Pretend(TorchFunctionMode):
    """Inside it, ``tensor.to(ELSEWHERE)`` puts a tensor on a device that is not there."""

    def __init__(self) -> None:
        TorchFunctionMode.__init__(self)
        self._places = _Places()

    def __enter__(self) -> "Pretend":
        self._places.__enter__()
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        self._places.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE_OF:
            return self._places.of(args[0]) or HERE
        if func == _IS_CUDA:
            return self._places.of(args[0]) == ELSEWHERE
        if func in _TO_NUMPY and self._places.of(args[0]) == ELSEWHERE:
            raise TypeError("can't convert a cuda tensor to numpy, use Tensor.cpu() first")
        if func is Tensor.cpu:
            return self._moved(args[0], HERE)
        if func is Tensor.cuda:
            return self._moved(args[0], ELSEWHERE)
        if func is Tensor.__deepcopy__:  # would copy the storage below our eyes
            return args[0].detach().clone()
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.type_as:
            return self._to(*args)
        device = kwargs.pop("device", None)
        given = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
        if device is None and given:
            return func(*args, **kwargs)
        device = HERE if device is None else device
        made = self._aimed(torch.device(device), lambda: func(*args, **kwargs))
        if not given and isinstance(made, Tensor):  # one made of numbers is seen only here
            self._places.known.pop(_plain(made).untyped_storage()._cdata, None)
            self._places.put(_plain(made), torch.device(device))
        return made

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for given in args:
            if isinstance(given, Tensor):
                device, dtype = self._places.of(given), given.dtype
            elif isinstance(given, (torch.device, str)):
                device = given
            elif isinstance(given, torch.dtype):
                dtype = given
        moved = tensor if device is None else self._moved(tensor, torch.device(device))
        return moved if dtype is None else moved.type(dtype)

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        if device.type == (self._places.of(tensor) or device).type:
            return tensor
        return self._aimed(ELSEWHERE if device.type == "cuda" else HERE, tensor.clone)

    def _aimed(self, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        before, self._places.target = self._places.target, device
        try:
            return make()
        finally:
            self._places.target = before
