"""Which cells a study has, and what tells them apart."""

from dataclasses import replace

import pytest

from specdec_lib.params_files import load_params
from specdec_lib.study.cells import GIVEN, Source, block, first_blocks, num_blocks, plan, prompt_groups, settings

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


def test_the_axes_take_a_few_prompts_and_the_headline_gamma_all(params):
    study = params.model_copy(update={"num_prompts": 5, "num_axis_prompts": 2, "temperatures": [0.0]})
    planned = plan(study, SOURCE)
    gammas = [{cell.num_draft_tokens for cell in each.cells} for each in planned if each.setting.headline]
    assert gammas == [{None, 1, 4}, {None, 1, 4}, {None, 4}, {None, 4}, {None, 4}]
    assert [each.prompts for each in planned if not each.setting.headline] == [[0, 1], [2, 3]]
    assert num_blocks(study) == len(planned)


def test_a_first_headline_needs_the_prompts_with_the_fewest_cells(params):
    study = params.model_copy(update={"num_prompts": 5, "num_axis_prompts": 2})
    planned = plan(study, SOURCE)
    first = [planned[number] for number in first_blocks(study)]
    assert {each.setting.temperature for each in first} == set(study.temperatures)
    assert [each.prompts for each in first] == [[3], [4]] * 2
    assert all(each.setting.headline for each in first)
    assert first_blocks(params.model_copy(update={"num_prompts": 3, "num_axis_prompts": 2})) == []


def test_texts_that_stop_by_themselves_are_cells_of_their_own_and_not_compared_with_transformers(params):
    fixed, natural = (
        block(params.model_copy(update={"stop": stop, "compare_transformers": True}), SOURCE, settings(params)[0], 0)
        for stop in ("fixed", "natural")
    )
    assert not {cell.id for cell in fixed} & {cell.id for cell in natural}
    assert {cell.engine for cell in fixed} == {"specdec_lib", "transformers"}
    assert {cell.engine for cell in natural} == {"specdec_lib"}


def test_weights_in_8_bits_are_not_compared_with_transformers_which_does_not_have_them(params):
    """And the cells say so: an id and a column of their own."""
    study = params.model_copy(update={"dtype": "int8", "compare_transformers": True})
    cells = block(study, replace(SOURCE, dtype="int8"), settings(params)[0], 0)
    assert {(cell.engine, cell.source.dtype) for cell in cells} == {("specdec_lib", "int8")}
    assert not {cell.id for cell in cells} & {cell.id for cell in block(params, SOURCE, settings(params)[0], 0)}


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
    other = block(params.model_copy(update={"verification": ["other"]}), SOURCE, settings(params)[0], 0)
    assert cells[0].id == other[0].id
    assert not {cell.id for cell in cells[1:]} & {cell.id for cell in other}


def test_draft_lengths_are_cells_of_the_headline_setting_and_the_first_is_that_of_all_others(params):
    several = params.model_copy(update={"draft_length": ["fixed", "confidence:0.4"]})
    for setting in settings(several):
        cells = block(several, SOURCE, setting, 0)
        lengths = ["fixed", "confidence:0.4"] if setting.headline else ["fixed"]
        assert [*dict.fromkeys(cell.draft_length for cell in cells)] == [None, *lengths]
        assert len({cell.id for cell in cells}) == len(cells)
        assert {cell.id for cell in block(params, SOURCE, setting, 0)} <= {cell.id for cell in cells}


def test_other_rules_are_cells_of_the_headline_setting_where_chance_decides(params):
    several = params.model_copy(
        update={"verification": ["token", "block"], "draft_length": ["fixed", "confidence:0.4"]}
    )
    for setting in settings(several):
        ways = {(cell.verification, cell.draft_length) for cell in block(several, SOURCE, setting, 0)[1:]}
        expected = {("token", "fixed")} | ({("token", "confidence:0.4")} if setting.headline else set())
        assert ways == expected | ({("block", "fixed")} if setting.headline and setting.temperature else set())


def test_an_acceptance_that_is_replayed_is_part_of_a_cell(params):
    one, two = (
        block(params.model_copy(update={"accepted_per_step": given}), SOURCE, settings(params)[0], 0)
        for given in ([1, 0], [2, 0])
    )
    assert [cell.verification for cell in one] == [None, *[GIVEN] * 4]
    assert one[0].id == two[0].id
    assert not {cell.id for cell in one[1:]} & {cell.id for cell in two}
