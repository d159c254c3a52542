"""A way to draft that the package does not know: the last token, again and again. Importing this registers it."""

import torch

from specdec_lib.decoding.proposers.proposer import Proposer
from specdec_lib.methods import Method, register


class EchoProposer(Proposer):
    def propose(self, rows, num_draft_tokens, uniforms):
        draft_tokens = rows.last_token().repeat(1, num_draft_tokens)  # [B, gamma]
        return draft_tokens, torch.nn.functional.one_hot(draft_tokens, rows.vocab_size).float()


register(
    Method("echo", "last token again", "#CC79A7", "v", lambda pair: EchoProposer(), ("echo",), uses_pair_draft=False)
)
