"""Where a study may run: on the device that its params name, and on the product that its price is of."""

import pytest
import torch

from specdec_lib.machine.environment import check_device, check_product
from specdec_lib.params_files import load_params
from specdec_lib.study.workers import worker
from specdec_lib.study.workers.team import Team

H100 = load_params("h100")
REFUSAL = (
    "^this is a h100-pcie, and price aws-us-east-1-h100 is of h100-sxm: name a price of a h100-pcie in params/h100.yaml"
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("build", [None, "13.0"])
def test_a_pytorch_without_cuda_is_named_where_no_device_is_seen(build, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", build)
    with pytest.raises(ValueError, match="no CUDA device: run it on such a machine") as refusal:
        check_device(H100)
    assert ("make TORCH=cuda installs a PyTorch that sees it" in str(refusal.value)) == (build is None)


def test_a_price_of_another_product_is_refused():
    with pytest.raises(ValueError, match=REFUSAL):
        check_product(H100, "h100-pcie")


@pytest.mark.parametrize(("gpu", "product"), [("h100", "h100-sxm"), ("h100", None), ("cpu", None)])
def test_the_product_itself_is_not_and_neither_is_one_that_the_driver_does_not_tell(gpu, product):
    check_product(load_params(gpu), product)


def test_a_worker_refuses_it_before_it_loads_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "check_device", lambda params: None)
    monkeypatch.setattr(worker, "describe_environment", lambda params: {"cuda": {"product": "h100-pcie"}})
    monkeypatch.setattr(worker, "load_study_pair", lambda params: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=REFUSAL):
        worker._work(worker.WorkerTask(H100, tmp_path), Team())
