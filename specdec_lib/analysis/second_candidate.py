"""Whether a second candidate at the first position pays: two chains of gamma tokens against the best single one.

Each is taken at its best gamma. With two chains a pass verifies 2 gamma + 1 tokens, and emits more where the first
is rejected and the second accepted (recursive rejection without replacement; SpecInfer, arXiv 2305.09781). A
`gain` is the time per token of the best single chain over that of the best two; above 1, two chains are faster. No step
with two chains is run for it, so every gain is predicted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from specdec_lib.analysis.advice import measured_places
from specdec_lib.analysis.cost_model.data_sheet import OURS, DataSheet, Range, corners
from specdec_lib.analysis.cost_model.gpus import ACCEPTANCE
from specdec_lib.analysis.statistics import geometric_mean
from specdec_lib.analysis.step_table import StepTable
from specdec_lib.analysis.theory import expected_tokens, expected_tokens_of_two_chains
from specdec_lib.config import StudyParams
from specdec_lib.hardware.catalog import Price, load_gpus, price
from specdec_lib.models.loading.presets import PRESETS
from specdec_lib.params_files import load_params
from specdec_lib.study.cells import NATURAL_PROMPT

DRAFT = "draft"  # the method whose second candidates the profile knows
SECOND_CHAIN = Range(1.0, 1.5, 2.0)  # drafting two chains over drafting one: a pass over two tokens costs one to two
SAVED = Range(0.17, 0.22, 0.28)  # rejected first tokens saved; the embedded pair's are 0.19 at T=1, 0.25 at T=0
WORTH = 1.03  # a smaller gain is not worth another method
GPU_PRESETS, BATCHES = ("a100", "h100", "h200"), (1, 8, 32)  # what is predicted next to a run
PLACE = ["temperature", "batch_size", "context_tokens"]
COLUMNS = ["num_draft_tokens", "tokens_per_pass", "two_chains", "two_tokens_per_pass", "gain", "gain_low", "gain_high"]


class _Best(NamedTuple):
    gamma: int
    cost: float  # of a step
    tokens: Any  # of a pass: a number, or one for each prompt


def second_candidate_gains(profile: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """One line per temperature, batch size and context at which a run's costs were measured.

    `num_draft_tokens` is the best gamma of one chain, `two_chains` that of two; the numbers of tokens are geometric
    means over prompts. The band of `gain` holds its interval over prompts, and a cost of drafting two chains
    between once and twice that of one. A gamma counts where passes over both numbers of tokens were timed.

    Args:
        profile: from `acceptance.read_acceptance`.
        costs: the step costs of the same run.
    """
    table, lines = StepTable(costs), []
    for temperature, of_draft in profile[profile["method"] == DRAFT].groupby("temperature"):
        one, two = tokens_of_prompts(of_draft)
        for batch, context in measured_places(costs):
            cost = _Cost(table, batch, context, float(temperature))
            single = _best({gamma: (cost(gamma + 1, gamma, 1), tokens) for gamma, tokens in one.items()})
            doubles = [
                _best({gamma: (cost(2 * gamma + 1, gamma, drafting), tokens) for gamma, tokens in two.items()})
                for drafting in SECOND_CHAIN
            ]
            if single and all(doubles):
                lines.append((temperature, batch, context, *_compared(single, doubles)))
    return pd.DataFrame(lines, columns=[*PLACE, *COLUMNS]).assign(evidence="predicted")


@dataclass(frozen=True)
class _Cost:
    """Milliseconds of a step at one place of a run; NaN where a piece was not timed."""

    table: StepTable
    batch: int
    context: float
    temperature: float

    def __call__(self, tokens: int, gamma: int, drafting: float) -> float:
        """Of a pass over so many tokens after drafting gamma of them, which costs `drafting` times one chain."""
        where = self.batch, self.context
        verifying = sum(self.table.ms(piece, *where, tokens, self.temperature) for piece in ("target", "sampling"))
        return verifying + drafting * self.table.ms(DRAFT, *where, gamma, self.temperature)


def tokens_of_prompts(of_draft: pd.DataFrame) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Tokens of a pass for each gamma, a number per prompt: with one chain, and with two."""
    one, two = {}, {}
    for gamma, rows in of_draft.sort_values("prompt_id").groupby("num_draft_tokens"):
        accepted = np.array(rows["accepted_by_position"].tolist(), dtype=float)  # [prompts, gamma]
        first = accepted[:, 0]
        after = np.divide(accepted.sum(axis=1), first, out=np.ones_like(first), where=first > 0)  # c2 and those after
        single = (rows["tokens"] / rows["steps"]).to_numpy(dtype=float)
        one[int(gamma)] = single
        two[int(gamma)] = single + (rows["saved_by_second"] / rows["steps"]).to_numpy(dtype=float) * after
    return one, two


def _best(choices: Mapping[int, tuple[float, Any]]) -> _Best | None:
    """The gamma with the least time per token; None where no cost is known."""
    known = [_Best(gamma, *each) for gamma, each in choices.items() if np.isfinite(each[0])]
    return min(known, key=lambda each: each.cost / _mean(each.tokens), default=None)


def _mean(tokens: Any) -> float:
    return float(np.exp(np.mean(np.log(tokens))))


def _compared(single: _Best, doubles: Sequence[_Best | None]) -> tuple[object, ...]:
    """The columns of a line; the doubles are at the least, a middle and the greatest cost of drafting two chains."""
    gains = []
    for double in doubles:
        assert double
        ratios = double.tokens / single.tokens * single.cost / double.cost
        gains.append(geometric_mean(ratios, np.random.default_rng(0)))
    least, middle, most = gains
    double = doubles[1]
    assert double
    ends = np.nanmin([most.low, most.value]), np.nanmax([least.high, least.value])
    return single.gamma, _mean(single.tokens), double.gamma, _mean(double.tokens), middle.value, *map(float, ends)


def gains_with_presets(params: StudyParams, profile: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """The gains of a run, from `second_candidate_gains`, and after them those predicted for the GPU presets."""
    own = second_candidate_gains(profile, costs).assign(gpu=params.gpu, pair=params.pair)
    presets = (load_params(name, {"batch_sizes": [*BATCHES]}) for name in GPU_PRESETS)
    tables = [own, *(predicted_gains(each, price(each.price)) for each in presets)]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def predicted_gains(
    params: StudyParams, sold: Price, acceptance: Range = ACCEPTANCE, saved: Range = SAVED
) -> pd.DataFrame:
    """The same for a GPU study that was not run, by the cost model: a line per batch size.

    Its band spans the assumptions of the cost model, and of both chances. Each corner has its own best gammas.

    Args:
        sold: the price of the GPU, which names the product.
    """
    gpu, (target, draft) = load_gpus()[sold.gpu], PRESETS[params.pair]
    context = (params.prompt_tokens[0] or NATURAL_PROMPT) + params.max_new_tokens[0] / 2
    machines = [DataSheet(gpu, corner, params.dtype) for corner in corners(OURS)]
    lines = []
    for batch in params.batch_sizes:
        places = [_Place(machine, target, draft, batch, context) for machine in machines]
        found = [
            _gain_at(place, params.num_draft_tokens, rate, share)
            for place, rate, share in _corners(places, acceptance, saved)
        ]
        gains = [line[-1] for line in found]
        lines.append((params.gpu, params.pair, batch, context, *found[0], min(gains), max(gains)))
    columns = ["gpu", "pair", "batch_size", "context_tokens", *COLUMNS]
    return pd.DataFrame(lines, columns=columns).assign(temperature=np.nan, evidence="predicted")


@dataclass(frozen=True)
class _Place:
    """A machine with a pair, a batch and a context."""

    machine: DataSheet
    target: str
    draft: str
    batch: int
    context: float

    def cost(self, gamma: int, chains: int) -> float:
        """Seconds of a step."""
        machine, batch, tokens = self.machine, self.batch, chains * gamma + 1
        verifying = machine.pass_(self.target, batch, tokens, self.context)
        drafting = machine.propose(self.draft, batch, gamma, self.context, chains=chains)
        return verifying + drafting + machine.sampling(self.target, batch, tokens)


def _corners(places: Sequence[_Place], *ranges: Range) -> Iterator[tuple[_Place, float, float]]:
    """The middle of everything first, then all combinations."""
    yield places[0], ranges[0].value, ranges[1].value
    yield from itertools.product(places, *ranges)  # type: ignore[misc]


def _gain_at(place: _Place, gammas: Sequence[int], rate: float, saved: float) -> tuple[Any, ...]:
    """Best gamma and tokens of a pass with one chain, the same with two, and the gain."""
    one = _best({gamma: (place.cost(gamma, 1), expected_tokens(rate, gamma)) for gamma in gammas})
    tokens = {gamma: expected_tokens_of_two_chains([rate] * gamma, saved) for gamma in gammas}
    two = _best({gamma: (place.cost(gamma, 2), tokens[gamma]) for gamma in gammas})
    assert one
    assert two
    return one.gamma, one.tokens, two.gamma, two.tokens, two.tokens / one.tokens * one.cost / two.cost
