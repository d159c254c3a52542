"""What stands for CUDA graphs on a CPU: steps are recorded operator by operator, and replayed without their Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def place(tensor: Tensor) -> int:
    """Where its memory lies."""
    return tensor.untyped_storage().data_ptr()


def tensors_in(tree: object) -> list[Tensor]:
    """What an operator takes or makes."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recorder(TorchDispatchMode):
    """Does on a CPU what `CudaGraphs` does on a GPU: records a step's operators, and runs them again without Python.

    Each runs on the very memory it ran on when it was recorded, and what Python decided then is decided for good.
    """

    def __init__(self) -> None:
        super().__init__()
        self.captures = self.replays = self.asked = 0
        self.calls: list[tuple[Any, tuple, dict[str, Any], list[Any]]] = []
        self.before: dict[int, tuple[Tensor, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        written = [
            argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments
        ]
        for tensor in tree_leaves([arg for arg, changes in zip(args, written, strict=False) if changes]):
            self.before.setdefault(tensor.untyped_storage().data_ptr(), (tensor, tensor.untyped_storage().clone()))
        outputs = func(*args, **(kwargs or {}))
        if any(isinstance(output, bool | int | float) for output in tree_leaves(outputs)):
            raise RuntimeError(f"{func} waits for the device\nwhile a graph is captured")
        made, read = tensors_in(outputs), {place(tensor) for tensor in tensors_in(args)}
        if any(written) or not made or not {place(tensor) for tensor in made} <= read:  # else a view, which stays
            self.calls.append((func, args, kwargs or {}, made))
        return outputs

    def warm_up(self, step: Callable[[], None]) -> None:
        """See `CudaGraphs.warm_up`."""
        step()

    def forget(self) -> None:
        """See `CudaGraphs.forget`: there is no pool."""

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """See `CudaGraphs.capture`."""
        self.calls, self.before = [], {}
        try:
            with self:
                step()
        finally:  # a capture runs nothing: put everything back
            for tensor, contents in self.before.values():
                tensor.untyped_storage().copy_(contents)
        self.captures += 1
        calls = self.calls

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, outputs in calls:
                for old, new in zip(outputs, tensors_in(func(*args, **kwargs)), strict=True):
                    if place(old) != place(new):
                        old.copy_(new)

        return replay

    def ask(self, report: Tensor) -> Callable[[], list[int]]:
        """See `CudaGraphs.ask`."""
        self.asked += 1
        return report.clone().tolist
