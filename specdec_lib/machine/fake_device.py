"""A CUDA device that is not there: tensors on it have shapes, types and storages, but no contents.

PyTorch's `FakeTensorMode` makes these tensors; the host is real. What PyTorch would ask the driver has a stand-in here.
So loading, decoding, capturing and telemetry run as on a GPU, with models of any size. Nothing is compiled and no
kernel runs: the operators are those of the models' own code.

A captured graph replays what its step did. So in a step this device refuses:

    a tensor of the host, and a value that the host reads
    an operator, shape, number or storage that differs from those of the step before

Anywhere it refuses a matrix product in another precision than that of the models.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdec_lib.kernels.gpu import ops as gpu_kernels
from specdec_lib.models.engines import inductor

aten = torch.ops.aten
BLOCK = 512  # bytes, of which the allocator gives whole ones
UUID = "GPU-1111"
ATTENTION = aten._scaled_dot_product_efficient_attention.default  # what CUDA chooses for an additive mask
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, ATTENTION}
COPIES = {aten._to_copy.default, aten.copy_.default}
LIBRARIES = tuple(map(str, (sysconfig.get_paths()["stdlib"], Path(torch.__file__).parent, __file__)))

Entry = tuple[Any, ...]  # an operator and its arguments and results, as a graph would hold them


class FaultError(AssertionError):
    """What would fail or be wrong on a GPU; one line, with the line of code."""

    def __init__(self, what: str):
        super().__init__(f"{what} ({_line_of_code()})")


class Memory:
    """The storages that are alive on the device, and their bytes as PyTorch's allocator counts them."""

    def __init__(self) -> None:
        self.numbers: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self.made = self.allocated = self.peak = 0

    def number(self, tensor: Tensor) -> int:
        """Storages are numbered as they are made; one that is new here counts from now on until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.numbers:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self.made += 1
            self.numbers[key] = self.made, weakref.ref(storage, lambda _: self._free(key, size))
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        return self.numbers[key][0]

    def _free(self, key: int, size: int) -> None:
        del self.numbers[key]
        self.allocated -= size


@contextmanager
def fake_device(name: str, memory_bytes: float, count: int = 1) -> Iterator[FakeDevice]:
    """Within this block `cuda` is a device of this name and memory, or several of them."""
    device = FakeDevice(name, memory_bytes, count)
    _guard_cuda()
    with ExitStack() as stack:
        enter = stack.enter_context
        # Constants of one element would be computed for real, and a context of the device be started.
        enter(mock.patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", -1))
        enter(mock.patch.object(fake_tensor, "init_gpu_context"))
        enter(mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda mode: True)))
        enter(mock.patch.object(torch, "Generator", AnyGenerator))
        enter(mock.patch.object(inductor, "_compiled_layer", return_value=inductor._run_layer))
        enter(mock.patch.object(gpu_kernels, "why_not_on_gpu", return_value="plain operators are counted"))
        enter(mock.patch.multiple(torch.cuda, **device.stand_ins()))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        enter(DeviceAttention())
        yield enter(device)


def _guard_cuda() -> None:
    """Let a PyTorch without CUDA choose a `cuda` device as it chooses a CPU: there is nothing to switch to.

    Builds with CUDA do so by themselves where there is no driver.
    """
    if torch.version.cuda is None:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")  # of CPU and CUDA
        guards[1] = guards[0]


class FakeDevice(TorchDispatchMode):
    """What runs on the device, and what is refused there.

    Attributes:
        memory: what is allocated on it.
        graph_bytes: the most that a captured step needed for itself: its graph keeps them.
        captures: how many steps were captured, each after a run of its own.
        precision: of the models, in which they must multiply; None to allow any.
    """

    def __init__(self, name: str, memory_bytes: float, count: int = 1):
        super().__init__()
        self.name, self.memory_bytes, self.count = name, int(memory_bytes), count
        self.memory = Memory()
        self.graph_bytes = self.captures = 0
        self.precision: torch.dtype | None = None
        self.step: list[Entry] | None = None  # of the step under way
        self.before: list[Entry] | None = None  # of the step before it, if it must be the same
        self.oldest = 0  # the number of the first storage that the step under way makes, less 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks a tensor for its device
            return func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        place = next((leaf.type for leaf in leaves if isinstance(leaf, torch.device)), None)
        if place != "cuda" and not any(isinstance(each, FakeTensor) for each in given):
            return self._on_host(func, args, kwargs)
        if _may_read(func):
            if self._is_read(func, given, place):
                return self._read(func, args, kwargs)
        elif _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        try:
            outputs = func(*args, **kwargs)
        except fake_tensor.DynamicOutputShapeException:
            raise FaultError(f"{func} makes a shape from values, so that the host waits for the device") from None
        self._check(func, given, outputs)
        if self.step is not None:
            self._record((func, *map(self._described, tree_leaves((args, kwargs, outputs)))))
        return outputs

    def _on_host(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Work of the host alone is real; without a driver it has no pinned memory."""
        with unset_fake_temporarily():
            outputs = func(*args, **{name: value for name, value in kwargs.items() if name != "pin_memory"})
        if self.step is not None and any(isinstance(made, Tensor) and made.dim() > 0 for made in tree_leaves(outputs)):
            raise FaultError(f"{func} works on the host within a step: give it the device of the rows")
        return outputs

    def _is_read(self, func: Any, given: Sequence[Tensor], place: str | None) -> bool:
        """Whether the host gets to know a value of the device."""
        if func is aten._to_copy.default:
            return place == "cpu"
        return func is not aten.copy_.default or not isinstance(given[0], FakeTensor)

    def _read(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Between steps all values on the device are 0, and all that is compared is equal."""
        if self.step is not None:
            raise FaultError(f"{func} reads a value on the host within a step, which a graph cannot replay")
        with unset_fake_temporarily():
            if func is aten.copy_.default:
                return args[0].zero_()
            if func is aten._to_copy.default:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if func in (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default):
                return torch.zeros((), dtype=args[0].dtype).item()
            return True

    def _check(self, func: Any, given: Sequence[Tensor], outputs: Any) -> None:
        """Count what was made, and refuse a product in another precision and, in a step, a tensor of the host."""
        made = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        for tensor in made:
            if isinstance(tensor, FakeTensor) and tensor.device.type != "cpu":
                self.memory.number(tensor)
        if self.step is not None:
            for tensor in (*given, *made):
                if tensor.device.type == "cpu" and (tensor.dim() > 0 or func in COPIES):
                    raise FaultError(f"{func} takes or makes a tensor on the host within a step, not on the device")
        if self.precision and func in PRODUCTS and (func is ATTENTION or given[-1].shape[-2] > 1):
            for tensor in given:  # an outer product, as that of positions and frequencies, may be in any
                if tensor.dtype != self.precision:
                    raise FaultError(f"{func} multiplies in {tensor.dtype}, and the models are in {self.precision}")

    def _described(self, leaf: Any) -> Any:
        """A tensor by what a graph would hold of it: those of the step itself by the order in which it made them."""
        if not isinstance(leaf, Tensor):
            return leaf
        number = self.memory.number(leaf) if isinstance(leaf, FakeTensor) else 0
        place = ("made", number - self.oldest) if number > self.oldest else ("kept", number)
        return (*place, leaf.dtype, tuple(leaf.shape), leaf.stride(), leaf.storage_offset())

    def _record(self, entry: Entry) -> None:
        assert self.step is not None
        if self.before is not None:
            expected = self.before[len(self.step)] if len(self.step) < len(self.before) else ("nothing",)
            if entry != expected:
                raise FaultError(f"a step is not the one before: {_difference(expected, entry)}")
        self.step.append(entry)

    @contextmanager
    def _running_step(self, before: list[Entry] | None) -> Iterator[None]:
        """Refuse what a graph cannot hold; after `before` also what differs from it."""
        earlier, self.memory.peak = self.memory.peak, self.memory.allocated
        begun, self.oldest = self.memory.allocated, self.memory.made
        self.step, self.before = [], before
        try:
            yield
            if before is not None and len(before) != len(self.step):
                raise FaultError(f"a step has {len(self.step)} operators, and the one before {len(before)}")
        finally:
            self.before, self.step = self.step, None
            self.graph_bytes = max(self.graph_bytes, self.memory.peak - begun)
            self.memory.peak = max(earlier, self.memory.peak)

    @contextmanager
    def _capture(self, graph: Any, **options: Any) -> Iterator[None]:
        with self._running_step(self.before):
            yield
        self.captures += 1

    def stand_ins(self) -> dict[str, Any]:
        """What `torch.cuda` would ask the driver, as far as the library asks it."""
        memory = self.memory
        properties = SimpleNamespace(uuid=UUID, name=self.name, total_memory=self.memory_bytes, major=9, minor=0)

        def reset_peak(device: Any = None) -> None:
            memory.peak = memory.allocated

        def nothing(*_: Any) -> None:
            pass

        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: self.name,
            "get_device_properties": lambda device=None: properties,
            "synchronize": nothing,
            "empty_cache": nothing,
            "reset_peak_memory_stats": reset_peak,
            "max_memory_allocated": lambda device=None: memory.peak,
            "max_memory_reserved": lambda device=None: memory.peak + self.graph_bytes,
            "mem_get_info": lambda device=None: (self.memory_bytes - memory.allocated, self.memory_bytes),
            "Stream": Stream,
            "Event": Event,
            "current_stream": Stream,
            "stream": lambda stream: self._running_step(None),
            "graph_pool_handle": lambda: (0, 0),
            "CUDAGraph": Graph,
            "graph": self._capture,
        }


class Stream:
    """Of operators that nothing runs."""

    def __init__(self, device: Any = None):
        self.device = device

    def wait_stream(self, stream: Stream) -> None:
        """There is nothing to wait for."""


class Event:
    """In a stream; it has passed."""

    def record(self, stream: Stream | None = None) -> None:
        """It has passed."""

    def synchronize(self) -> None:
        """It has passed."""


class Graph:
    """A captured step; to replay it changes no contents."""

    def replay(self) -> None:
        """Start nothing."""


class AnyGenerator(torch.Generator):
    """A generator of the host, for any device: tensors without contents take no number from it."""

    def __new__(cls, *_: Any) -> Self:
        return super().__new__(cls)


class DeviceAttention(TorchFunctionMode):
    """The kernel that CUDA chooses for attention with an additive mask; PyTorch would ask the device which one."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], FakeTensor):
            query, key, value = args[:3]
            if kwargs.get("enable_gqa"):
                key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
            mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")
            return ATTENTION(query, key, value, mask, False, 0.0, kwargs.get("is_causal", False), scale=scale)[0]
        return func(*args, **kwargs)


@functools.cache
def _may_read(func: Any) -> bool:
    return func in COPIES or torch.Tag.data_dependent_output in func.tags


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, on whatever device."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _difference(expected: Entry, found: Entry) -> str:
    """The first thing in which two operators differ."""
    if expected[0] != found[0]:
        return f"{expected[0]} in the first, {found[0]} in the second"
    pairs = zip(expected[1:], found[1:], strict=False)
    first, second = next(((a, b) for a, b in pairs if a != b), (expected[1:], found[1:]))
    return f"{found[0]} had {first} in the first and {second} in the second: keep it in a tensor of the call"


def _line_of_code() -> str:
    """The line that was running, of no library."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith((*LIBRARIES, "<")):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
