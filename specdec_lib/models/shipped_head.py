"""The head that this repository ships: in the style of EAGLE, one transformer block that reads the target's states.

EAGLE (arXiv 2401.15077): the input at position t is the pair (embedding of token x[t+1], state of position t); the
output predicts token x[t+2]. Where the target has computed the position, its state is fused from several of the
target's layers (EAGLE-3, arXiv 2503.01840). At drafted positions it is the block's own output. The head shares the
target's embedding and output rows. It scores the most frequent tokens only, which never costs exactness.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear, rms_norm, silu

from specdec_lib.models import host_memory
from specdec_lib.models.attention import grouped_attention
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.draft_head import DraftHead, HeadSizes
from specdec_lib.models.loading.weights import fill_draft, read_draft, save_draft
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.shape import attention_geometry

RANDOM_SCORED = 32_000  # tokens that published heads score, of vocabularies of 128,000 to 152,000


@dataclass(frozen=True)
class HeadConfig:
    """Geometry of a draft head; `hidden_size` and `vocab_size` are the target's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    num_features: int  # states of the target that are fused: the last one, and one for each of `feature_layers`
    num_scored: int  # tokens that the output layer scores
    context_length: int
    rope_theta: float
    norm_eps: float
    feature_layers: tuple[int, ...] = ()

    @classmethod
    def for_target(cls, config: Any, feature_layers: tuple[int, ...], num_scored: int) -> HeadConfig:
        """The head that fits a Llama-like Hugging Face `config`."""
        return cls(
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            *attention_geometry(config),
            num_features=len(feature_layers) + 1,
            num_scored=num_scored,
            context_length=config.max_position_embeddings,
            rope_theta=config.rope_parameters["rope_theta"],
            norm_eps=config.rms_norm_eps,
            feature_layers=feature_layers,
        )


class ShippedHead(DraftHead):
    """The head in plain PyTorch. `KernelHead` computes the same on the CPU kernels, with `output_rows` in 8 bits."""

    def __init__(self, config: HeadConfig, embeddings: torch.Tensor, name: str = "draft head"):  # [V, H]
        sizes = HeadSizes(1, config.num_heads, config.num_key_value_heads, config.head_dim)
        super().__init__(name, sizes, config.vocab_size, config.hidden_size, config.feature_layers)
        self.config, self.context_length = config, config.context_length
        h, d = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_heads, config.num_key_value_heads
        self.feature_scale = nn.Parameter(torch.ones(config.num_features * h))
        self.fuse_features = nn.Linear(config.num_features * h, h, bias=False)
        self.combine = nn.Linear(2 * h, h, bias=False)
        self.attention_norm = nn.Parameter(torch.ones(h))
        self.query_key_value = nn.Linear(h, (heads + 2 * kv_heads) * d, bias=False)
        self.attention_out = nn.Linear(heads * d, h, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(h))
        self.gate_up = nn.Linear(h, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, h, bias=False)
        self.output_norm = nn.Parameter(torch.ones(h))
        self.register_buffer("scored_ids", torch.arange(config.num_scored))
        self.embeddings = embeddings.detach()  # the target's: detached, so that it does not count as our parameter

    @classmethod
    def load(cls, folder: Path, target: LanguageModel) -> ShippedHead:
        """Read a head from `folder`, on the kernels if `target` is; ValueError for bad files or another target."""
        from specdec_lib.models.engines.kernel_head import KernelHead  # a subclass of this class

        settings = read_draft(folder, "draft_head", target)
        config = HeadConfig(**{**settings, "feature_layers": tuple(settings["feature_layers"])})
        kind = KernelHead if target.engine == "kernels" and KernelHead.can_compute(config) else ShippedHead
        head = kind(config, target.model.get_input_embeddings().weight, name=Path(folder).name)
        fill_draft(head, folder)
        head.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)
        head.prepare()
        return head

    @classmethod
    def random(cls, target: LanguageModel, num_scored: int = RANDOM_SCORED) -> ShippedHead:
        """A head of random weights for a target of any size: real latency and memory, and drafts that mean nothing."""
        model, before = target.model, torch.get_default_dtype()
        config = HeadConfig.for_target(model.config, target.feature_layers, min(num_scored, target.vocab_size))
        torch.set_default_dtype(target.dtype)
        try:
            with torch.device(target.device):
                head = cls(config, model.get_input_embeddings().weight, f"head of {target.name}")
        finally:
            torch.set_default_dtype(before)
        head.eval().requires_grad_(False)
        generator = torch.Generator(target.device).manual_seed(0)
        for weight in head.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 0.02, generator=generator)
        head.prepare()
        return head

    def save(self, folder: Path) -> None:
        """Write weights (bfloat16) and config, without what belongs to the target."""
        save_draft(self, folder, "draft_head", asdict(self.config))

    def prepare(self) -> None:
        """Get ready to draft with the weights that this head has now."""
        host_memory.move(self)
        self.output_rows = self.embeddings[self.scored_ids]

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """The target's features of m positions `[B, m, F]` to states `[B, m, H]` (EAGLE-3, section 3.1)."""
        return self.fuse_features(self.scaled(features))

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, state: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
        positions = cache.place(tokens.shape[1])
        x = self.join(tokens, state)
        query, key, value = self.project(x, positions)
        key, value = cache.layers[0].update(key, value)
        mask = cache.attention_mask(self.dtype)
        attended, _ = grouped_attention(self, query, key, value, mask, scaling=self.config.head_dim**-0.5)
        return self.finish(x, attended.flatten(2))

    @torch.inference_mode()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(self.normed(hidden), self.output_rows)

    def scaled(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise each layer's state in `features` `[B, m, F]`, and scale it by learned factors."""
        layers = features.unflatten(-1, (self.config.num_features, self.hidden_size))
        return rms_norm(layers, (self.hidden_size,), eps=self.config.norm_eps).flatten(-2) * self.feature_scale

    def join(self, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Embeddings of `tokens` `[B, m]` and `state` `[B, m, H]` to the block's input `[B, m, H]`."""
        embedded = embedding(tokens, self.embeddings)
        return self.combine(torch.cat([self._rms(embedded), self._rms(state)], dim=-1))

    def project(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries `[B, heads, m, D]` and keys, and values `[B, kv_heads, m, D]`, of `x` `[B, m, H]`."""
        config = self.config
        heads = self.query_key_value(self._rms(x, self.attention_norm)).unflatten(-1, (-1, config.head_dim))
        rotated, value = heads.transpose(1, 2).tensor_split([config.num_heads + config.num_key_value_heads], dim=1)
        angles = positions[:, None, :, None].float() * self.inverse_frequencies()  # [B, 1, m, D / 2]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = rotated.chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return rotated[:, : config.num_heads], rotated[:, config.num_heads :], value

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The rest of the block: `x` `[B, m, H]` and the output of attention `[B, m, heads * D]` to `[B, m, H]`."""
        x = x + self.attention_out(attended)
        gate, up = self.gate_up(self._rms(x, self.mlp_norm)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` `[..., H]` after the last norm, which the output rows multiply."""
        return self._rms(hidden, self.output_norm)

    def inverse_frequencies(self) -> torch.Tensor:  # [D / 2]
        # In float32 whatever the weights' type: bfloat16 frequencies are off by tenths of a radian at position 200.
        exponents = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=self.device)
        return self.config.rope_theta ** -(exponents / self.config.head_dim)

    def _rms(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        weight = weight if weight is None else weight.to(x.dtype)  # training keeps float32 weights
        return rms_norm(x, (self.hidden_size,), weight, self.config.norm_eps)
