"""Which cells a study has, and what tells them apart."""

from dataclasses import replace

import pytest

from specdec_lib.config import load_params
from specdec_lib.study.cells import GIVEN, Source, block, prompt_groups, settings

SOURCE = Source("smoke", "this", "toy", "toy-target", "toy-draft", "0", "torch", "float32", 2, "mixed", "0")


@pytest.fixture(scope="module")
def params():
    small = {"num_draft_tokens": [1, 4], "batch_sizes": [1, 2], "repetitions": 2, "max_new_tokens": [8]}
    return load_params("smoke").model_copy(update=small)


def test_one_at_a_time_varies_one_axis_from_the_base(params):
    study = params.model_copy(update={"batch_sizes": [1, 2], "prompt_tokens": [0, 32], "max_new_tokens": [8, 16]})
    points = [(s.batch_size, s.prompt_tokens, s.max_new_tokens) for s in settings(study) if s.temperature == 0]
    assert points == [(1, None, 8), (2, None, 8), (1, 32, 8), (1, None, 16)]
    assert [s.num_draft_tokens for s in settings(study) if s.temperature == 0] == [(1, 4), (4,), (4,), (4,)]


def test_factorial_crosses_all_axes(params):
    study = params.model_copy(update={"design": "factorial", "prompt_tokens": [0, 32], "max_new_tokens": [8, 16]})
    assert len(settings(study)) == 2 * 2 * 2 * len(study.temperatures)


def test_a_batch_takes_its_own_prompts(params):
    study = params.model_copy(update={"num_prompts": 4})
    by_batch = {s.batch_size: prompt_groups(study, s) for s in settings(study)}
    assert by_batch[1] == [[0], [1], [2], [3]]
    assert by_batch[2] == [[0, 1], [2, 3]]  # not the headline setting: half as many prompts, but two groups


def test_the_cell_id_depends_on_everything_that_determines_the_cell(params):
    setting = settings(params)[0]
    cells = block(params, SOURCE, setting, 0) + block(params, SOURCE, setting, 1)
    cells += block(params.model_copy(update={"seed": 7}), SOURCE, setting, 0)
    cells += block(params.model_copy(update={"repetitions": 3}), SOURCE, setting, 0)
    cells += block(params, replace(SOURCE, weights="1"), setting, 0)
    assert len({cell.id for cell in cells}) == len(cells)
    assert cells[0].id == block(params, SOURCE, setting, 0)[0].id


def test_the_rule_is_part_of_a_cell_and_the_baseline_has_none(params):
    cells = block(params, SOURCE, settings(params)[0], 0)
    assert [cell.verification for cell in cells] == [None, *["token"] * 4]
    other = block(params.model_copy(update={"verification": "other"}), SOURCE, settings(params)[0], 0)
    assert cells[0].id == other[0].id
    assert not {cell.id for cell in cells[1:]} & {cell.id for cell in other}


def test_an_acceptance_that_is_replayed_is_part_of_a_cell(params):
    one, two = (
        block(params.model_copy(update={"accepted_per_step": given}), SOURCE, settings(params)[0], 0)
        for given in ([1, 0], [2, 0])
    )
    assert [cell.verification for cell in one] == [None, *[GIVEN] * 4]
    assert one[0].id == two[0].id
    assert not {cell.id for cell in one[1:]} & {cell.id for cell in two}
