"""The one list of ways to decode, of verification rules and of draft lengths. Whatever the project knows of one by name
stands here.

A new way to draft is one file in `decoding/proposers/` and one entry below. A new rule is one file in
`decoding/verification/` and one entry below. A new policy of the draft's length is one class in
`decoding/draft_length.py` and one entry below. A module of one's own calls `register` and `register_rule` when it is
imported; params name such modules in `plugins`, so that every process of a study imports them.

Nothing here imports torch: an entry imports what it makes when it makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec_lib.decoding.draft_length import DraftLength
    from specdec_lib.decoding.proposers.proposer import Proposer
    from specdec_lib.decoding.verification import Verify
    from specdec_lib.models.pair import Pair

AUTOREGRESSIVE = "autoregressive"  # the baseline: no drafts, so nothing below but a label and a colour
FIXED_LENGTH = "fixed"  # gamma tokens in every row and step


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        name: in params and tables.
        label: in figures, tables and sentences for readers.
        color: of its curves, everywhere; colour-blind safe (Okabe and Ito 2008).
        marker: of its points, so that a grey print still tells methods apart.
        make: its proposer for a pair; None for the baseline.
        pieces: the methods whose proposals its step contains; a method that drafts by itself is its only piece. The
            cost of each piece is measured.
        uses_pair_draft: whether the pair's draft identifies its drafts (`draft_id`); otherwise its own name does.
        capturable: whether its proposals are nothing but operators on tensors, so that CUDA graphs can hold its steps,
            unless its proposer for a pair says otherwise.
        needs_layers: whether it drafts with layers of the target, which toys do not have.
        chains: how many chains of gamma tokens a pass verifies. Two are for GPUs, and their length does not adapt.
    """

    name: str
    label: str
    color: str
    marker: str
    make: Callable[[Pair], Proposer] | None = None
    pieces: tuple[str, ...] = ()
    uses_pair_draft: bool = True
    capturable: bool = False
    needs_layers: bool = False
    chains: int = 1

    def draft_id(self, pair_draft_id: str) -> str | None:
        """What a row names as its draft; None for the baseline."""
        if self.make is None:
            return None
        return pair_draft_id if self.uses_pair_draft else self.name


@dataclass(frozen=True)
class VerificationRule:
    """A rule that decides which draft tokens stay and which token follows them.

    Attributes:
        name: in params and tables.
        label: for readers.
        load: imports its function; see `decoding.verification.verify` for the signature.
        kernel: the function of `kernels.ops` that computes the same, if there is one; `kernels.gpu.ops` may lack it.
    """

    name: str
    label: str
    load: Callable[[], Verify]
    kernel: str | None = None


@dataclass(frozen=True)
class LengthPolicy:
    """A policy that decides how many of gamma tokens a row drafts in a step.

    Attributes:
        name: in params and tables, where its number follows after a colon: confidence:0.4.
        label: for readers; {} stands for the number.
        make: the policy with its number, which the fixed length ignores.
        number: what the number is; empty for the fixed length, which has none.
        above, below: the number lies between.
        capturable: whether steps that are captured in CUDA graphs can follow it.
    """

    name: str
    label: str
    make: Callable[[float], DraftLength]
    number: str = ""
    above: float = 0.0
    below: float = 1.0
    capturable: bool = True


def _draft(pair: Pair) -> Proposer:
    from specdec_lib.decoding.proposers.model import ModelProposer

    return ModelProposer(pair.draft)


def _ngram(pair: Pair) -> Proposer:
    from specdec_lib.decoding.proposers.ngram import NgramProposer

    return NgramProposer()


def _composite(pair: Pair) -> Proposer:
    from specdec_lib.decoding.proposers.composite import CompositeProposer

    return CompositeProposer(_draft(pair))


def _suffix(pair: Pair) -> Proposer:
    from specdec_lib.decoding.proposers.suffix import SuffixProposer

    return SuffixProposer()


def _suffix_or_draft(pair: Pair) -> Proposer:
    from specdec_lib.decoding.proposers.composite import CompositeProposer
    from specdec_lib.decoding.proposers.suffix import SuffixProposer

    return CompositeProposer(_draft(pair), SuffixProposer(shortest=2))


def _early_exit(pair: Pair) -> Proposer:
    from specdec_lib.decoding.proposers.early_exit import EarlyExitProposer

    return EarlyExitProposer(max(pair.target.num_layers // 3, 1))


def _two_chains(pair: Pair) -> Proposer:
    from specdec_lib.decoding.proposers.two_chains import TwoChainsProposer

    return TwoChainsProposer(pair.draft)


def _token() -> Verify:
    from specdec_lib.decoding.verification import verify

    return verify


def _block() -> Verify:
    from specdec_lib.decoding.verification.block import verify_block

    return verify_block


def _fixed(_: float) -> DraftLength:
    from specdec_lib.decoding.draft_length import FIXED

    return FIXED


def _confident(least: float) -> DraftLength:
    from specdec_lib.decoding.draft_length import ConfidentLength

    return ConfidentLength(least)


def _accepted(cost: float) -> DraftLength:
    from specdec_lib.decoding.draft_length import AcceptedLength

    return AcceptedLength(cost)


def _batch(budget: float) -> DraftLength:
    from specdec_lib.decoding.draft_length import BatchLength

    return BatchLength(budget)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(AUTOREGRESSIVE, "autoregressive", "#4D4D4D", "s"),
        Method("draft", "draft model", "#0072B2", "o", _draft, ("draft",), capturable=True),
        Method("ngram", "n-gram lookup", "#D55E00", "^", _ngram, ("ngram",), uses_pair_draft=False, capturable=True),
        Method("composite", "lookup or draft", "#009E73", "D", _composite, ("draft", "ngram"), capturable=True),
        Method("suffix", "suffix lookup", "#E69F00", "v", _suffix, ("suffix",), uses_pair_draft=False),
        Method("suffix_or_draft", "suffix or draft", "#CC79A7", "P", _suffix_or_draft, ("draft", "suffix")),
        Method(
            *("early_exit", "a third of the layers", "#56B4E9", "X", _early_exit, ("early_exit",)),
            uses_pair_draft=False,
            capturable=True,
            needs_layers=True,
        ),
        Method("two_chains", "two chains", "#F0E442", "h", _two_chains, ("two_chains",), capturable=True, chains=2),
    )
}
RULES: dict[str, VerificationRule] = {
    rule.name: rule
    for rule in (
        VerificationRule("token", "token by token", _token, kernel="verify"),
        VerificationRule("block", "block", _block, kernel="verify_block"),
    )
}
_COST = "what a draft token costs, drafted and verified, over an ordinary step"
LENGTHS: dict[str, LengthPolicy] = {
    policy.name: policy
    for policy in (
        LengthPolicy(FIXED_LENGTH, "always γ", _fixed),
        LengthPolicy("confidence", "while likely ({})", _confident, "the least chance of a draft", capturable=False),
        LengthPolicy("acceptance", "by acceptance so far ({})", _accepted, _COST, capturable=False),
        LengthPolicy("batch", "{} in a batch", _batch, "draft tokens of a step, over all rows", 0, 2**31),
    )
}


def register(method: Method) -> None:
    """Add a way to decode of one's own, for this process.

    Raises:
        ValueError: the name is taken by another.
    """
    if METHODS.get(method.name, method) != method:
        raise ValueError(f"there is a method {method.name!r} already: choose another name")
    METHODS[method.name] = method


def register_rule(rule: VerificationRule) -> None:
    """Add a verification rule of one's own, for this process.

    Raises:
        ValueError: the name is taken by another.
    """
    if RULES.get(rule.name, rule) != rule:
        raise ValueError(f"there is a verification rule {rule.name!r} already: choose another name")
    RULES[rule.name] = rule


def length_policy(text: str) -> tuple[LengthPolicy, float]:
    """The policy that `text` names, such as fixed or confidence:0.4, and its number.

    Raises:
        ValueError: no such policy, or no number that it could have.
    """
    name, colon, number = text.partition(":")
    policy = LENGTHS.get(name)
    if policy is None:
        known = ", ".join(map(_with_number, LENGTHS.values()))
        raise ValueError(f"unknown draft length {text!r}: choose one of {known}")
    if not policy.number and not colon:
        return policy, 0.0
    try:
        value = float(number) if policy.number else float("nan")
    except ValueError:
        value = float("nan")
    if not policy.above < value < policy.below:
        between = f", a number between {policy.above:g} and {policy.below:g}" if policy.number else ""
        raise ValueError(f"draft length {text!r}: write {_with_number(policy)}{between}")
    return policy, value


def _with_number(policy: LengthPolicy) -> str:
    return f"{policy.name}:<{policy.number}>" if policy.number else policy.name


def length_label(text: str) -> str:
    """How readers see a draft length; one that is not known here, as in an old run, stays as it is."""
    name, _, number = text.partition(":")
    return LENGTHS[name].label.format(number) if name in LENGTHS else text


def rule_label(name: str) -> str:
    """How readers see a verification rule; one that is not registered here, as in an old run, stays as it is."""
    return RULES[name].label if name in RULES else name


def make_draft_length(text: str) -> DraftLength:
    """The policy that `text` names, such as fixed or confidence:0.4.

    Raises:
        ValueError: see `length_policy`.
    """
    policy, number = length_policy(text)
    return policy.make(number)


def speculative_methods() -> list[str]:
    """The names of all ways to decode but the baseline, as params may list them."""
    return [name for name, method in METHODS.items() if method.make is not None]


def label(name: str) -> str:
    """How readers see a method; a name that is not registered here, as in an old run, stays as it is."""
    return METHODS[name].label if name in METHODS else name


def pieces(names: list[str]) -> list[str]:
    """The methods whose proposals the steps of these methods contain, each once, in the order of the list."""
    needed = {piece for name in names for piece in METHODS[name].pieces}
    return [name for name in METHODS if name in needed]


def make_proposer(name: str, pair: Pair) -> Proposer:
    """The proposer of a method for a pair.

    Raises:
        ValueError: no such method; the known ones are named.
    """
    method = METHODS.get(name)
    if method is None or method.make is None:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(speculative_methods())}")
    proposer = method.make(pair)
    assert method.capturable or not proposer.capturable, f"{name}: the registry and the proposer differ in `capturable`"
    assert proposer.chains == method.chains, f"{name}: the registry and the proposer differ in `chains`"
    return proposer
