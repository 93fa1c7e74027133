"""The drift monitor as it is used: on and off, copies, where it is refused, a scaler, a compiled step."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from support import make_params, set_gradients, stream

from sfplus_kernels import SGD, AdamC, AdamW, ScheduleFreeWrapper, SGDScheduleFreeClosure


def test_on_and_off() -> None:
    params = make_params([(7,)])
    optimizer = AdamW(params)
    assert not [key for key in optimizer.metrics() if "rotation" in key]
    optimizer.monitor_drift("tensor")
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    with_tensors = optimizer.metrics()
    assert with_tensors["tensor_weight_norm"] == with_tensors["group_weight_norm"]
    assert optimizer.metrics(wait=False) == with_tensors
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for twin in copies:  # which have taken no step of their own
        assert math.isnan(twin.metrics()["tensor_weight_norm"][0])
    optimizer.monitor_drift("group")
    assert "tensor_weight_norm" not in optimizer.metrics()
    optimizer.monitor_drift(None)
    optimizer.step()
    assert not [key for key in optimizer.metrics() if "rotation" in key]
    assert not [key for key in optimizer.metrics(wait=False) if "rotation" in key]
    with pytest.raises(ValueError, match="per is 'all'; expected one of"):
        optimizer.monitor_drift("all")


@pytest.mark.parametrize(
    "optimizer",
    [
        ScheduleFreeWrapper(torch.optim.SGD(make_params([(3,)]), lr=0.1)),
        SGDScheduleFreeClosure(make_params([(3,)])),
    ],
)
def test_who_refuses(optimizer: Any) -> None:
    with pytest.raises(RuntimeError, match="drift cannot be monitored here: the .* take "):
        optimizer.monitor_drift()


def test_a_gradient_scale_is_taken_out() -> None:
    params = make_params([(33, 5)])
    optimizer = SGD(params, lr=0.1)
    optimizer.monitor_drift()
    params[0].grad = 1024 * torch.ones_like(params[0])
    optimizer.grad_scale = torch.tensor(1024.0)
    optimizer.step()
    assert optimizer.metrics()["group_grad_norm"] == pytest.approx([math.sqrt(165)])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_step_is_monitored_too() -> None:
    """Also where the compiler hands copies of the tensors to the operator."""
    found = []
    for compiled in (False, True):
        params = make_params([(33, 5), (7,)], torch.float32)
        optimizer = AdamC(params, lr=0.02, backend="cpu")
        optimizer.monitor_drift("tensor")
        take = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        for _, gradients in stream([p.shape for p in params], 3):
            set_gradients(params, gradients)
            take()
        found.append({k: v for k, v in optimizer.metrics().items() if "steady" not in k})
    assert found[0] == found[1]
