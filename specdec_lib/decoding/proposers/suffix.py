"""Lookup that learns: drafts what most often followed the last tokens, as long as that is likely (arXiv 2411.04975).

A tree counts every sequence of up to `depth` tokens of a text. The nodes of a text's last 1, 2, 3, ... tokens are kept
while the text grows. So adding a token moves each of them down by one, and a match of any length is found without a
search. From each match the most frequent continuation is followed. It ends where its share of what followed here gets
too small, or after as many tokens as matched. The draft with the most tokens expected to be right wins.

Two texts are looked up: the row's own, and what the proposer has been given to remember. Memory is explicit, because a
row's tokens must depend on nothing that is not said: at a temperature above 0 other drafts give other tokens of the
same law. A proposer starts with none, and `remember` adds to it between calls. The study's cells remember nothing: they
decode the same prompt again and again, and would measure that they have seen it.

The tree is on the host, so that steps cannot be captured. A remembered token costs some 5 kB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from specdec_lib.decoding.call import Call
from specdec_lib.decoding.proposers.proposer import Drafting, Proposal, Proposer
from specdec_lib.decoding.rows import Rows

DEPTH = 24  # tokens of the longest sequence that is counted, match and draft together; as in vLLM
LEAST_CHANCE = 0.1  # a draft goes on while its share of what followed is at least this; as in vLLM


class Node:
    """A sequence of tokens that stood in a text: how often, and what followed it."""

    __slots__ = ("children", "count", "favourite", "followed")

    def __init__(self) -> None:
        self.count = self.followed = 0  # how often it stood there, and how often with a token after it
        self.children: dict[int, Node] = {}
        self.favourite = -1  # the token that followed most often, of equals the latest

    def grow(self, token: int) -> Node:
        """Count that `token` followed; returns the sequence with it."""
        child = self.children.get(token)
        if child is None:
            child = self.children[token] = Node()
        child.count += 1
        self.followed += 1
        if self.favourite < 0 or child.count >= self.children[self.favourite].count:
            self.favourite = token
        return child

    def follow(self, at_most: int) -> tuple[float, list[int]]:
        """The most frequent continuation, and how many of its tokens are expected to be right."""
        node, chance, expected, tokens = self, 1.0, 0.0, list[int]()
        while node.followed and len(tokens) < at_most:
            child = node.children[node.favourite]
            chance *= child.count / node.followed
            if chance < LEAST_CHANCE:
                break
            expected += chance
            tokens.append(node.favourite)
            node = child
        return expected, tokens


class Place:
    """Where a text has got to in a tree: the nodes of its last 1, 2, 3, ... tokens, as far as they stand in it."""

    def __init__(self, root: Node):
        self.root = root
        self.matches: list[Node] = []

    def grow(self, token: int) -> None:
        """Count the text's next token, and go there."""
        self.matches = [node.grow(token) for node in (self.root, *self.matches[: DEPTH - 1])]

    def go(self, token: int) -> None:
        """Go on by the text's next token, and count nothing."""
        found = (node.children.get(token) for node in (self.root, *self.matches))
        self.matches = [node for node in found if node is not None]

    def drafts(self, shortest: int, at_most: int) -> Iterable[tuple[float, list[int]]]:
        """The continuation of each match of at least `shortest` tokens, no longer than it; the longest match first."""
        longest_first = range(len(self.matches), shortest - 1, -1)
        return (self.matches[length - 1].follow(min(length, at_most)) for length in longest_first)


class SuffixProposer(Proposer):
    """Drafts from frequencies: up to gamma tokens, in each row and step as many as are likely.

    Args:
        shortest: how many last tokens must have stood before.
    """

    def __init__(self, shortest: int = 1) -> None:
        if shortest < 1:
            raise ValueError(f"shortest is {shortest}: give at least 1 token")
        self.shortest, self.memory = shortest, Node()

    def remember(self, texts: Iterable[Sequence[int] | torch.Tensor]) -> None:
        """Draft from these texts too, in the calls that follow: such as `result.tokens` of those before."""
        for text in texts:
            place = Place(self.memory)
            for token in text.tolist() if isinstance(text, torch.Tensor) else text:
                place.grow(token)

    def start(self, call: Call) -> Drafting:
        return SuffixDrafting(self, call.rows.batch_size, call.num_draft_tokens)


class SuffixDrafting(Drafting):
    """One call's lookup: for each row a place in its own text and one in the memory."""

    def __init__(self, proposer: SuffixProposer, batch_size: int, gamma: int):
        self.shortest, self.gamma = proposer.shortest, gamma
        self.own = [Place(Node()) for _ in range(batch_size)]
        self.remembered = [Place(proposer.memory) for _ in range(batch_size)]
        self.read = [0] * batch_size  # tokens of each row

    def read_prompt(self, rows: Rows, start: int, end: int, features: torch.Tensor) -> None:
        self._read(rows, rows.prompt_lengths.clamp(max=end))

    def propose(self, rows: Rows, num_draft_tokens: int, uniforms: torch.Tensor) -> Proposal:
        self._read(rows, rows.lengths)
        drafts = [self._draft(row)[:num_draft_tokens] for row in range(rows.batch_size)]
        device, longest = rows.tokens.device, max(map(len, drafts))
        tokens = torch.tensor([draft + [0] * (longest - len(draft)) for draft in drafts], device=device)
        known = torch.tensor([[i < len(draft) for i in range(longest)] for draft in drafts], device=device)
        probs = torch.zeros(rows.batch_size, longest, rows.vocab_size, device=device)
        tokens = tokens.long().view(rows.batch_size, longest)
        return tokens, probs.scatter_(2, tokens[:, :, None], known.view(tokens.shape)[:, :, None].float())

    def _draft(self, row: int) -> list[int]:
        """The draft with the most tokens expected to be right; of equals one from the row's own text."""
        places = self.own[row], self.remembered[row]
        drafts = [draft for place in places for draft in place.drafts(self.shortest, self.gamma)]
        return max(drafts, key=lambda draft: draft[0], default=(0.0, []))[1]

    def _read(self, rows: Rows, lengths: torch.Tensor) -> None:  # [B]
        """Take in the tokens of each row up to `lengths`."""
        first = min(self.read)
        text = rows.tokens[:, first : int(lengths.max())].tolist()
        for row, length in enumerate(lengths.tolist()):
            for token in text[row][self.read[row] - first : length - first]:
                self.own[row].grow(token)
                self.remembered[row].go(token)
            self.read[row] = length
