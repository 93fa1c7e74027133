"""What only a GPU can show; the rest of the suite runs there too, with compiled Triton kernels."""

import pytest
import torch
from support import EVERYTHING, make_params, set_gradients, stream, two_groups

from sfplus_kernels import AdamCScheduleFreePlus

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["triton", "eager"])
def test_a_step_never_waits_for_the_device(backend: str) -> None:
    params = make_params(dtype=torch.float32, device="cuda")
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    optimizer.train()
    steps = [
        (torch.tensor(loss, device="cuda"), [None if g is None else g.cuda() for g in gradients])
        for loss, gradients in stream([p.shape for p in params], 100)
    ]
    set_gradients(params, steps[0][1])
    optimizer.step(loss=steps[0][0])  # compiles, allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss, gradients in steps[1:]:
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.metrics()["k"] == 100


def test_auto_picks_triton() -> None:
    params = make_params([(3,)], torch.float32, "cuda")
    optimizer = AdamCScheduleFreePlus(params)
    optimizer.metrics()
    assert optimizer._engine is not None
    assert optimizer._engine.backend_name == "triton"
