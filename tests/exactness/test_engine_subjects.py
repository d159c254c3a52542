"""Subjects of other engines: what we do to an engine before it is tested. Stand-ins play what is not installed."""

import torch

from specdec_lib.exactness.subjects import vllm_subject


def test_the_mended_function_of_vllm_gives_each_position_its_requests_value():
    """Temperature 0 stands for greedy requests, whose logits are not to be divided by it."""
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)  # drafts of 2, 0 and 3 tokens
    temperatures = vllm_subject._expanded(torch.tensor([0.7, 0.5, 0.0]), ends, 5, replace_from=0, replace_to=1)
    assert torch.equal(temperatures, torch.tensor([0.7, 0.7, 1.0, 1.0, 1.0]))
    top_k = vllm_subject._expanded(torch.tensor([3, 8, 5], dtype=torch.int32), ends, 5)
    assert top_k.tolist() == [3, 3, 5, 5, 5]
    assert top_k.dtype == torch.int32
