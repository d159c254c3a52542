"""What a piece of decoding computes, reads and writes, counted from the operators that it runs.

On any tensors, also on those of a `FakeDevice`. An operator is one kernel and a view is none. It moves the elements of
its inputs and outputs, each once: no cache of the device holds them from one operator to the next.

A compiler joins what lies between two matrix products. So every piece is counted twice: operator by operator, and with
those joined that follow one another and run over equally many elements, or over what one of them reduced. They are one
kernel then, which keeps to itself what no other needs. That is PyTorch's compiler without its finer rules.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from specdec_lib.hardware.costs import Counts

aten = torch.ops.aten
PRODUCT, ATTENTION, OTHER = "product", "attention", "other"
GROUPED = aten._grouped_mm  # of tokens with the experts that they were sent to

FLOPS: dict[Any, Callable[..., int]] = {  # of operators that PyTorch's own list lacks
    GROUPED: lambda rows, experts, *_, **__: 2 * rows.shape[0] * experts.shape[1] * experts.shape[2],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query.shape, key.shape, value.shape
    ),
}
FREE = {
    aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.lift_fresh, aten.new_empty,
    aten.new_empty_strided,
}  # fmt: skip
FROM_TABLES = {  # by the argument of which as many elements are read as come out
    aten.embedding: "weight", aten.gather: "self", aten.index: "self", aten.index_select: "self",
    aten.searchsorted: "sorted_sequence",
}  # fmt: skip
INTO_PLACES = {  # by the argument that says how many elements are written
    aten._index_put_impl_: "values", aten.index_copy_: "source", aten.index_put_: "values", aten.scatter_: "index",
}  # fmt: skip
OVERWRITING = {aten.copy_, aten.fill_, aten.zero_, aten.normal_}  # what they change, they do not read
CONVERTING = {aten._to_copy, aten.clone}  # of a weight they make a weight, as of a router in float32
ALONE = {aten.sort, aten.topk}  # no compiler joins them with others


class Span(NamedTuple):
    """The elements of a tensor: whose they are and where."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Operator(NamedTuple):
    """One that ran: its bytes by what it reads and writes."""

    packet: Any
    kind: str
    flops: int
    reads: dict[Span, int]
    writes: dict[Span, int]

    @property
    def joins(self) -> bool:
        """Whether a compiler can join it with its neighbours."""
        return self.kind == OTHER and self.packet not in ALONE

    @property
    def elements(self) -> int:
        """Over how many it runs: of a reduction, over its input."""
        return max(prod(span.shape) for span in (*self.reads, *self.writes))

    @property
    def made_elements(self) -> int:
        """How many it writes."""
        return max(prod(span.shape) for span in self.writes)


class OperatorCounter(TorchDispatchMode):
    """Counts what runs within it on one kind of device.

    Args:
        model: whose matrices are weights; other tensors are activations. None if there are no weights.

    Raises:
        ValueError: an operator reads weights, and nobody said how many operations that takes.
    """

    def __init__(self, device_type: str, model: torch.nn.Module | None = None):
        super().__init__()
        self.device_type = device_type
        matrices = [weight for weight in model.parameters() if weight.dim() >= 2] if model else []
        self.weights = {weight.untyped_storage()._cdata for weight in matrices}
        self.operators: list[Operator] = []
        self.sizes: dict[int, int] = {}  # bytes of each storage
        self._alive: list[Any] = [weight.untyped_storage() for weight in matrices]  # so that their numbers stay theirs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks a tensor for its device
            return func(*args, **kwargs)
        with self:  # an operator that is made of others, on whatever device
            outputs = func.decompose(*args, **kwargs)
        if outputs is NotImplemented:
            outputs = func(*args, **kwargs)
            self._add(func, args, kwargs, outputs)
        return outputs

    def counts(self, outputs: object) -> Counts:
        """All that ran since the last call; `outputs` are the tensors that outlive it."""
        ran, self.operators = self.operators, []
        products = [each for each in ran if each.kind == PRODUCT]
        attention = [each for each in ran if each.kind == ATTENTION]
        groups = [group for run in _runs(ran) for group in _joined(ran, run)]
        grouped = [each for each in products if each.packet is GROUPED]
        weights = sum(map(self._weight_bytes, products))
        moved = sum(map(_bytes, products)) - weights
        return Counts(
            product_flops=sum(each.flops for each in products),
            attention_flops=sum(each.flops for each in attention),
            weight_bytes=weights,
            expert_bytes=sum(map(self._weight_bytes, grouped)),
            attention_bytes=sum(map(_bytes, attention)),
            other_bytes=moved + sum(_bytes(each) for each in ran if each.kind == OTHER),
            fused_bytes=moved + self._joined_bytes(ran, groups, {span.storage for span in self._spans([outputs])}),
            kernels=len(ran),
            fused_kernels=sum(not each.joins for each in ran) + len(groups),
            experts=max((self._experts(each).shape[0] for each in grouped), default=0),
            expert_rows=max((each.flops // (2 * prod(self._experts(each).shape[1:])) for each in grouped), default=0),
        )

    def _add(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Any) -> None:
        packet, schema = func._overloadpacket, func._schema
        given = dict(zip([argument.name for argument in schema.arguments], args, strict=False)) | kwargs
        made = (outputs,) if len(schema.returns) == 1 else outputs or ()
        aliases = [each.alias_info for each in schema.returns]
        if packet in FREE or (aliases and all(alias and not alias.is_write for alias in aliases)):
            return
        read: list[object] = []
        written: list[object] = [each for each, alias in zip(made, aliases, strict=True) if alias is None]
        for argument in schema.arguments:
            changed = bool(argument.alias_info and argument.alias_info.is_write)
            (written if changed else read).append(given.get(argument.name))
            if changed and not argument.is_out and packet not in OVERWRITING and packet not in INTO_PLACES:
                read.append(given[argument.name])
        reads, writes = self._spans(read), self._spans(written)
        if packet in FROM_TABLES:
            self._touch(reads, given[FROM_TABLES[packet]], sum(writes.values()))
        if packet in INTO_PLACES:
            source = given[INTO_PLACES[packet]]
            self._touch(writes, given["self"], source.numel() * given["self"].element_size())
        if packet in CONVERTING and any(span.storage in self.weights for span in reads):
            self.weights.update(span.storage for span in writes)
        if sum(writes.values()):
            formula = FLOPS.get(packet) or flop_registry.get(packet)
            flops = int(formula(*args, **kwargs, out_val=outputs)) if formula else 0
            self.operators.append(Operator(packet, self._kind(packet, bool(formula), reads), flops, reads, writes))

    def _kind(self, packet: Any, multiplies: bool, reads: dict[Span, int]) -> str:
        reads_weights = any(span.storage in self.weights for span in reads)
        if reads_weights and not multiplies and packet not in FROM_TABLES and packet not in CONVERTING:
            raise ValueError(f"{packet} reads weights, and how many operations it takes is not known: add it to FLOPS")
        return OTHER if not multiplies else PRODUCT if reads_weights else ATTENTION

    def _spans(self, values: Iterable[object]) -> dict[Span, int]:
        """The bytes of all tensors in `values` on the device; of one that was expanded, of what it repeats."""
        found = {}
        for tensor in tree_leaves([*values]):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device_type:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self._alive.append(storage)
                span = Span(key, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
                size = tensor.element_size()
                for count, stride in zip(span.shape, span.stride, strict=True):
                    size *= count if stride or not count else 1
                found[span] = size
        return found

    def _touch(self, spans: dict[Span, int], tensor: Tensor, size: int) -> None:
        """Of this tensor so many bytes are touched, whatever it spans."""
        spans.update(dict.fromkeys(self._spans([tensor]), size))

    def _experts(self, grouped: Operator) -> Span:
        return next(span for span in grouped.reads if span.storage in self.weights)

    def _weight_bytes(self, product: Operator) -> int:
        return sum(size for span, size in product.reads.items() if span.storage in self.weights)

    def _joined_bytes(self, ran: Sequence[Operator], groups: Sequence[set[int]], kept: set[int]) -> int:
        """What all but products and attention move where each group is one kernel."""
        readers: dict[int, set[int]] = defaultdict(set)
        made: dict[int, int] = {}  # the operator that wrote a storage first; -1 if it was there before
        for place, each in enumerate(ran):
            for span in each.reads:
                readers[span.storage].add(place)
                made.setdefault(span.storage, -1)
            for span in each.writes:
                made.setdefault(span.storage, place)
        total = sum(_bytes(each) for each in ran if each.kind == OTHER and not each.joins)
        for group in groups:
            moved: dict[tuple[str, int], dict[Span, int]] = defaultdict(dict)
            for place in group:
                for span, size in ran[place].reads.items():
                    if made[span.storage] not in group:
                        moved["read", span.storage][span] = size
                for span, size in ran[place].writes.items():
                    storage = span.storage
                    if storage in kept or made[storage] not in group or readers[storage] - group:
                        moved["write", storage][span] = size
            total += sum(min(sum(spans.values()), self.sizes[storage]) for (_, storage), spans in moved.items())
        return total


def _bytes(operator: Operator) -> int:
    return sum(operator.reads.values()) + sum(operator.writes.values())


def _runs(ran: Sequence[Operator]) -> Iterator[list[int]]:
    """The places of operators that stand in one row, with none between them that a compiler cannot join."""
    for joins, places in itertools.groupby(range(len(ran)), key=lambda place: ran[place].joins):
        if joins:
            yield [*places]


def _joined(ran: Sequence[Operator], run: Sequence[int]) -> Iterator[set[int]]:
    """The operators of a row that become one kernel: those over equally many elements, with what these reduced."""
    groups: dict[int, set[int]] = {}
    reduced: dict[int, int] = {}  # elements of results of reductions, and over how many these ran
    for place in run:
        elements = reduced.get(ran[place].elements, ran[place].elements)
        groups.setdefault(elements, set()).add(place)
        if ran[place].made_elements < ran[place].elements:
            reduced[ran[place].made_elements] = elements
    yield from groups.values()
