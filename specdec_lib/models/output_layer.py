"""From hidden states to logits: the output layer, or all that the model's own code does after its body."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from specdec_lib.models.loading.architectures import text_config, text_model

LARGE = 30.0  # of hidden states that show a cap on the logits


def output_layer(model: Any) -> tuple[Any, int]:
    """What makes logits `[..., V]` of hidden states `[..., H]`, and H.

    The output layer of a Hugging Face model if it is all there is, else the model's own code after its body. ValueError
    if there is none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output layer, so that it writes no text: choose another model")
    if not hasattr(model, "base_model_prefix"):
        return head, model.config.hidden_size  # a toy
    own = OwnOutput(model, head)
    for width in (head.weight.shape[1], text_config(model.config).hidden_size):
        hidden = torch.linspace(-LARGE, LARGE, 3 * width, device=head.weight.device).to(head.weight.dtype)
        hidden = hidden.view(1, 3, width)  # in one shape, as results depend on it
        try:
            with torch.inference_mode():
                made = own(hidden)
                same = width == head.weight.shape[1] and torch.equal(head(hidden).float(), made.float())
            return head if same else own, width
        except RuntimeError:  # some heads widen or narrow what they read
            continue
    return own, width


class OwnOutput:
    """Scaled, capped or otherwise changed logits (Granite, Cohere, Gemma 2): the model's `forward` without its body."""

    def __init__(self, model: Any, head: torch.nn.Module):
        self.model, self.head, self.weight = model, head, head.weight

    def __call__(self, hidden: torch.Tensor, scores: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states `[..., H]` to logits `[..., V]`; with `scores`, of what the output layer made of them."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        tokens = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        output = _BodyOutput(last_hidden_state=rows)
        with ExitStack() as stack:
            for body in (self.model.base_model, self.model.get_decoder(), text_model(self.model)):
                makes_logits = body is self.model or hasattr(body, "lm_head") or body is self.head
                if not makes_logits:
                    stack.enter_context(_returning(body, output))
            if scores is not None:
                stack.enter_context(_returning(self.head, scores.reshape(1, -1, scores.shape[-1])))
            logits = self.model(input_ids=tokens, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], -1)


class _BodyOutput(BaseModelOutputWithPast):
    """What a body returns, with None for whatever else the model's code asks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _returning(module: torch.nn.Module, output: object) -> Iterator[None]:
    """Within this block `module` computes nothing and returns `output`."""
    before = vars(module).get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if before is not None:
            module.forward = before
        else:
            del module.forward
