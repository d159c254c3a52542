"""A draft that reads the target's mind: one transformer block over the target's own hidden states.

EAGLE (arXiv 2401.15077) drafts from what the target already computed instead of from the tokens alone: the input at
position t is the pair (embedding of token x[t+1], state of position t), and the output predicts token x[t+2]. Where the
target has seen the position, the state is fused from several of its layers (EAGLE-3, arXiv 2503.01840); beyond that
point it is the block's own output. Embedding and output rows belong to the target and are shared with it at load time
(of the rows the CPU kernels keep a copy in 8 bits); only the most frequent tokens are scored, which costs a little
acceptance and never exactness.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import embedding, linear, rms_norm, silu

from specdec_lib.models import host_memory
from specdec_lib.models.attention import grouped_attention
from specdec_lib.models.cache import RaggedStaticCache
from specdec_lib.models.engines.kernel_head import FusedHead
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.weights import sha256

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class HeadConfig:
    """Geometry of a draft head; `hidden_size` and `vocab_size` are the target's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    num_features: int  # the target's last state, and one more for each of `feature_layers`
    num_scored: int  # tokens that the output layer scores
    context_length: int
    rope_theta: float
    norm_eps: float
    feature_layers: tuple[int, ...] = ()

    @classmethod
    def for_target(cls, config: Any, feature_layers: tuple[int, ...], num_scored: int) -> HeadConfig:
        """The head that fits a Llama-like Hugging Face `config`."""
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            num_features=len(feature_layers) + 1,
            num_scored=num_scored,
            context_length=config.max_position_embeddings,
            rope_theta=config.rope_parameters["rope_theta"],
            norm_eps=config.rms_norm_eps,
            feature_layers=feature_layers,
        )


class DraftHead(nn.Module):
    """The EAGLE-style head, with the parts of the target that it shares.

    The pair (x[t+1], state t) has rotary position t and sits at index t of the head's cache, so the head's cache is one
    position shorter than the target's. `forward` returns the block's output before the last norm: it is both what
    `logits` reads and the state of the next drafted position.
    """

    scored_ids: torch.Tensor

    def __init__(self, config: HeadConfig, embeddings: torch.Tensor, name: str = "draft head"):  # [V, H]
        super().__init__()
        self.config, self.name = config, name
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.context_length, self.feature_layers = config.context_length, config.feature_layers
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
        self._shared = {"embeddings": embeddings}  # a plain dict: the target's weights are no part of this module
        self.fused: FusedHead | None = None

    @property
    def device(self) -> torch.device:
        return self.output_norm.device

    @property
    def dtype(self) -> torch.dtype:
        return self.output_norm.dtype

    @property
    def embeddings(self) -> torch.Tensor:
        """The target's, `[V, H]`."""
        return self._shared["embeddings"]

    @property
    def output_rows(self) -> torch.Tensor:
        """The target's output rows of the tokens that are scored, `[scored, H]`; the kernels have them in 8 bits."""
        return self._shared["output"]

    @property
    def num_parameters(self) -> int:
        """Weights of its own; what is shared with the target does not count."""
        return sum(p.numel() for p in self.parameters())

    @classmethod
    def load(cls, folder: Path, target: LanguageModel) -> DraftHead:
        """Read a head from `folder` and join it to `target`, whose embedding it shares.

        Raises:
            ValueError: a missing or truncated file, or a head made for another target.
        """
        settings = read_config(folder, "draft_head")
        config = HeadConfig(**{**settings, "feature_layers": tuple(settings["feature_layers"])})
        if (config.hidden_size, config.vocab_size) != (target.hidden_size, target.vocab_size):
            raise ValueError(
                f"{folder}: made for a target of width {config.hidden_size} and {config.vocab_size} tokens, but "
                f"{target.name} has {target.hidden_size} and {target.vocab_size}; use the draft with its own target"
            )
        head = cls(config, target.model.get_input_embeddings().weight, name=Path(folder).name)
        load_weights(head, folder)
        head.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)
        if target.fused is not None and FusedHead.fits(head):
            head.fused = FusedHead(head)
        else:
            host_memory.move(head)
            head.share_output_rows()
        return head

    def save(self, folder: Path) -> None:
        """Write weights (bfloat16) and config; the target's embedding stays behind."""
        save_draft(self, folder, "draft_head", asdict(self.config))

    def share_output_rows(self) -> None:
        """Gather the output rows from the target's tied embedding."""
        self._shared["output"] = self.embeddings[self.scored_ids]

    def new_cache(self, batch_size: int, capacity: int) -> RaggedStaticCache:
        """An empty cache for `batch_size` rows of up to `capacity` pairs each."""
        return RaggedStaticCache(
            batch_size=batch_size,
            capacity=capacity,
            num_layers=1,
            num_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """What the target computed at m positions `[B, m, F]` to the head's states `[B, m, H]` (EAGLE-3, sec. 3.1)."""
        layers = features.unflatten(-1, (self.config.num_features, self.hidden_size))
        scaled = rms_norm(layers, (self.hidden_size,), eps=self.config.norm_eps).flatten(-2) * self.feature_scale
        return self.fuse_features(scaled) if self.fused is None else self.fused.fuse(scaled)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, state: torch.Tensor, cache: RaggedStaticCache) -> torch.Tensor:
        """Run m pairs of `tokens` `[B, m]` and `state` `[B, m, H]` behind each row's committed length.

        Returns `[B, m, H]`. Nothing is committed: call `cache.commit` with the number of pairs to keep.
        """
        positions = cache.place(tokens.shape[1])
        if self.fused is not None:
            return self.fused(tokens, state, positions, cache)
        x = self.join(tokens, state)
        query, key, value = self.project(x, positions)
        key, value = cache.layers[0].update(key, value)
        mask = cache.attention_mask(self.dtype)
        attended, _ = grouped_attention(self, query, key, value, mask, scaling=self.config.head_dim**-0.5)
        return self.finish(x, attended.flatten(2))

    @torch.inference_mode()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., H]` to the logits of the tokens `scored_ids`, `[..., scored]`; all others have -inf."""
        if self.fused is not None:
            return self.fused.scores(hidden)
        return linear(self.normed(hidden), self.output_rows)

    def join(self, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Embeddings of `tokens` `[B, m]` beside `state` `[B, m, H]` to the block's input `[B, m, H]`."""
        embedded = embedding(tokens, self.embeddings)
        return self.combine(torch.cat([self._rms(embedded), self._rms(state)], dim=-1))

    def project(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries `[B, heads, m, D]` and keys, and values `[B, kv_heads, m, D]`, of `x` `[B, m, H]`."""
        config = self.config
        heads = self.query_key_value(self._rms(x, self.attention_norm)).unflatten(-1, (-1, config.head_dim))
        rotated, value = heads.transpose(1, 2).split(
            [
                config.num_heads + config.num_key_value_heads,
                heads.shape[2] - config.num_heads - config.num_key_value_heads,
            ],
            dim=1,
        )
        angles = positions[:, None, :, None].float() * self.inverse_frequencies()  # [B, 1, m, D / 2]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = rotated.chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return rotated[:, : config.num_heads], rotated[:, config.num_heads :], value

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The rest of the block: `x` `[B, m, H]` and what attention returned `[B, m, heads * D]` to `[B, m, H]`."""
        x = x + self.attention_out(attended)
        gate, up = self.gate_up(self._rms(x, self.mlp_norm)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the output rows multiply: `hidden` `[..., H]` after the last norm."""
        return self._rms(hidden, self.output_norm)

    def inverse_frequencies(self) -> torch.Tensor:  # [D / 2]
        """Of the rotary embedding."""
        # In float32 whatever the weights' type: bfloat16 frequencies are off by tenths of a radian at position 200.
        exponents = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=self.device)
        return self.config.rope_theta ** -(exponents / self.config.head_dim)

    def _rms(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        weight = weight if weight is None else weight.to(x.dtype)  # training keeps float32 weights
        return rms_norm(x, (self.hidden_size,), weight, self.config.norm_eps)


def read_config(folder: Path, kind: str) -> dict:
    """The settings of the `kind` of draft in `folder`; ValueError when there is none."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise ValueError(f"{path} is missing; give the folder of a draft, or write one with `make draft`")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("kind") != kind:
        raise ValueError(f"{path} describes a {config.get('kind')!r}, not a {kind!r}; load it as what it is")
    return config["settings"]


def save_draft(module: nn.Module, folder: Path, kind: str, settings: dict) -> None:
    """Write what `read_config` and `load_weights` read: weights in bfloat16, their SHA-256, and settings."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous() for name, t in module.state_dict().items()}
    save_file({n: t.bfloat16() if t.is_floating_point() else t.int() for n, t in tensors.items()}, folder / WEIGHTS)
    text = json.dumps({"kind": kind, "sha256": sha256(folder / WEIGHTS), "settings": settings}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill `module` from the safetensors file in `folder`; ValueError when it is missing, changed or another's."""
    path = Path(folder) / WEIGHTS
    if not path.exists():
        raise ValueError(f"{path} is missing; check the repository out in full, or write it with `make draft`")
    if sha256(path) != json.loads((path.parent / CONFIG).read_text(encoding="utf-8")).get("sha256"):
        raise ValueError(f"{path} is not the file that {CONFIG} beside it describes; check both out again")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not fit its settings ({reason}); check it out again") from error
