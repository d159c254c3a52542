"""For models that cannot read a ragged batch: each row alone, by the model's own code and with its own cache.

Such are models with an attention of their own (GPT-J, Falcon, Bloom's ALiBi) and recurrent ones, which have a state in
place of keys and values. A state cannot be rolled back, so that snapshots of it are kept: a pass begins at the newest
one that holds no rejected token, and reads the accepted tokens after it again.

The host reads the lengths of the rows, so that these passes cannot be captured in CUDA graphs.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from specdec_lib.models.attention import NotServedError
from specdec_lib.models.cache import RaggedCache
from specdec_lib.models.engines.engine import Engine, Step
from specdec_lib.models.loading.architectures import text_config

SNAPSHOTS = 8  # of a row: as many as drafted tokens and two; with fewer more is read again
READ_AGAIN = 16  # tokens: before more of them are read again, a new snapshot is taken
REVERSIBLE = {  # layers of a cache that can be cropped, or whose states can be put back
    DummyLayer, DynamicIndexedLayer, DynamicLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionLayer,
}  # fmt: skip


class RowByRowEngine(Engine):
    """Calls the model's own `forward` once for each row."""

    name = "row by row"
    capturable = False
    keeps_cache = True
    most_tokens: int | None = None  # of a pass that continues a text

    def __init__(self, body: Any, head: Any, feature_layers: tuple[int, ...], context_length: int):
        super().__init__(body, head, feature_layers, context_length)
        self._states = states = list[torch.Tensor]()
        for layer in feature_layers:
            body.layers[layer].register_forward_hook(lambda module, args, output: states.append(output))
        names = inspect.signature(body.forward).parameters
        self.cache_argument = "cache_params" if "cache_params" in names else "past_key_values"
        self.takes_positions = "position_ids" in names

    def new_cache(self, batch_size: int, capacity: int) -> RowsCache:
        rows = [_Row(_full_length_cache(self.body.config) if self.keeps_cache else None) for _ in range(batch_size)]
        return RowsCache(rows, capacity, self.head.weight.device)

    def __call__(self, tokens: torch.Tensor, cache: RowsCache, counts: torch.Tensor | None = None) -> Step:
        """As every engine does; states of padding, and past the context, are zeros."""
        batch_size, m = tokens.shape
        cache.write(tokens)
        lengths, numbers = cache.lengths.tolist(), [m] * batch_size if counts is None else counts.tolist()
        steps = [
            self._read(row, cache.tokens[index, : min(length + number, self.context_length)], length)
            for index, (row, length, number) in enumerate(zip(cache.rows, lengths, numbers, strict=True))
        ]
        hidden, features = (
            torch.stack([torch.nn.functional.pad(each, (0, 0, 0, m - len(each))) for each in states])
            for states in ([step.hidden for step in steps], [step.features for step in steps])
        )
        return Step(hidden, features)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden.to(self.head.weight.dtype))  # Mamba's are float32, whatever its weights are

    def _read(self, row: _Row, text: torch.Tensor, length: int) -> Step:  # states [n, H] of the n tokens after `length`
        """Read what `row` does not hold yet of `text` `[length + n]`."""
        start = row.roll_back(min(length, len(text) - 1))
        if length - start > READ_AGAIN and row.cache is not None:
            self._pass(row, text[start:length])
            start = length
        read = self._pass(row, text[start:])
        new = max(len(text) - length, 0)
        return Step(read.hidden[len(read.hidden) - new :], read.features[len(read.hidden) - new :])

    def _pass(self, row: _Row, tokens: torch.Tensor) -> Step:  # [n] -> states [n, H]
        """Read `tokens` after those that `row` holds, in as many calls as the model needs."""
        most = len(tokens) if row.length == 0 or self.most_tokens is None else self.most_tokens
        steps = []
        for part in tokens.split(most):
            self._states.clear()
            given: dict[str, Any] = {"use_cache": row.cache is not None}
            if row.cache is not None:
                given[self.cache_argument] = row.cache
            if self.takes_positions:  # as `generate` hands them over
                given["position_ids"] = torch.arange(row.length, row.length + len(part), device=part.device)[None]
            out = self.body(input_ids=part[None], **given)
            steps.append(Step.of([*self._states, out.last_hidden_state]))
            row.length += len(part)
        row.take_snapshot()
        return Step(*(torch.cat([getattr(step, name)[0] for step in steps]) for name in ("hidden", "features")))


class TokenByTokenEngine(RowByRowEngine):
    """For models that continue a text by one token only: speculation is exact with them, but saves nothing."""

    name = "token by token"
    most_tokens = 1


class RereadingEngine(RowByRowEngine):
    """For models without a cache that transformers could roll back: each pass reads the whole text again."""

    name = "rereading"
    keeps_cache = False


ALONE = {kind.name: kind for kind in (RowByRowEngine, TokenByTokenEngine, RereadingEngine)}


class RowsCache(RaggedCache):
    """The text of each row `[B, capacity]` as it was read, and what the model keeps of it."""

    def __init__(self, rows: list[_Row], capacity: int, device: torch.device):
        super().__init__(len(rows), capacity, device)
        self.rows = rows
        self.tokens = torch.zeros(len(rows), self.capacity, dtype=torch.int64, device=device)

    def write(self, tokens: torch.Tensor) -> None:  # [B, m]
        """Note the tokens after each row's length."""
        self.check_room(tokens.shape[1])
        places = self.lengths[:, None] + torch.arange(tokens.shape[1], device=self.device)
        self.tokens.scatter_(1, places, tokens)


class _Row:
    """A row's own cache; `length` tokens have been read into it."""

    def __init__(self, cache: Cache | None):
        self.cache, self.length = cache, 0
        layers = [] if cache is None else cache.layers
        self.recurrent = [layer for layer in layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
        self.attending = [layer for layer in layers if isinstance(layer, DynamicLayer)]
        self.snapshots = [(0, self._states())]

    def roll_back(self, length: int) -> int:
        """Forget what was read after `length`, and as much before it as must be; returns how much is left."""
        if self.cache is None:
            self.length = 0
        elif not self.recurrent:
            self._crop(min(self.length, length))
        elif self.length > length:
            self.snapshots = [each for each in self.snapshots if each[0] <= length]
            kept, states = self.snapshots[-1]
            self._crop(kept)
            for layer, state in zip(self.recurrent, states, strict=True):
                vars(layer).update(copy.deepcopy(state))  # the model changes its states in place
        return self.length

    def take_snapshot(self) -> None:
        """Remember the states as they are now."""
        if self.recurrent:
            self.snapshots = [self.snapshots[0], *self.snapshots[1:][-SNAPSHOTS:], (self.length, self._states())]

    def _crop(self, length: int) -> None:
        for layer in self.attending:
            crop = functools.partial(DynamicLayer.crop, layer) if layer in self.recurrent else layer.crop
            crop(length - self.length)
        self.length = length

    def _states(self) -> list[dict[str, Any]]:
        names = ("keys", "values")  # these are cropped
        return [copy.deepcopy({k: v for k, v in vars(layer).items() if k not in names}) for layer in self.recurrent]


def _full_length_cache(config: Any) -> DynamicCache:
    """A cache of transformers whose layers forget nothing, also where the model sees a window only.

    NotServedError if it has layers that cannot be rolled back.
    """
    cache = DynamicCache(config=text_config(config))
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = DynamicLayer()
        elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
            cache.layers[index] = LinearAttentionAndFullAttentionLayer(layer.number_of_states)
        elif type(layer) not in REVERSIBLE:
            raise NotServedError(f"its cache has a {type(layer).__name__}, which cannot be rolled back")
    return cache
