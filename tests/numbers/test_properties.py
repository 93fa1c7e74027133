"""Random shapes, strides, dtypes, gaps and groups, against the reference class."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MIXED_GRADIENTS, device_of, set_gradients, stream
from torch import Tensor, nn

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
shapes = st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[torch.dtype, torch.dtype, tuple[int, ...], str]:
    layout = draw(st.sampled_from(["plain", "transposed", "gaps", "offset"]))
    dtype, grad_dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    return dtype, grad_dtype if MIXED_GRADIENTS else dtype, draw(shapes), layout


def lay_out(value: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return value.transpose(0, -1).contiguous().transpose(0, -1) if value.dim() else value
    if layout == "gaps":
        wide = torch.zeros(*value.shape, 2, dtype=value.dtype, device=value.device)
        wide[..., 0] = value
        return wide[..., 0]
    if layout == "offset":
        flat = torch.zeros(value.numel() + 1, dtype=value.dtype, device=value.device)
        flat[1:] = value.flatten()
        return flat[1:].view(value.shape)
    return value


@st.composite
def cases(draw: st.DrawFn) -> dict:
    return {
        "tensors": draw(st.lists(tensors(), min_size=1, max_size=6)),
        "cuts": draw(st.lists(st.integers(0, 6), max_size=2)),
        "missing": draw(st.sampled_from([0.0, 0.5])),
        "seed": draw(st.integers(0, 1000)),
        "arguments": {
            "lr": draw(st.floats(0.01, 0.5)),
            "betas": draw(st.sampled_from([(0.9, 0.95), (0.0, 0.5), (0.5, 0.0)])),
            "sf_beta1": draw(st.just(0.0) | st.floats(0.001, 0.99)),
            "weight_decay": draw(st.floats(0, 2)),
            "r": draw(st.sampled_from([0, 1, 2.5])),
            "polyak_beta": draw(st.sampled_from([0.0, 0.9])),
            "c_warmup": draw(st.integers(0, 3)),
            "warmup_steps": draw(st.integers(0, 3)),
            "sf_beta1_anneal_steps": draw(st.integers(0, 4)),
            "maximize": draw(st.booleans()),
            "max_lr": draw(st.sampled_from([None, 1e-3, 1e-2])),
        },
    }


def in_groups(params: list[nn.Parameter], cuts: list[int]) -> list[dict]:
    edges = [0, *sorted(min(cut, len(params)) for cut in cuts), len(params)]
    groups = [params[i:j] for i, j in pairwise(edges)]
    return [{"params": g, "weight_decay": 0.1 * i} for i, g in enumerate(groups) if g]


def test_any_set_of_tensors(backend: str) -> None:
    interpreted = backend == "triton" and device_of(backend).type == "cpu"  # which is slow

    @settings(max_examples=6 if interpreted else 25, deadline=None, derandomize=True)
    @given(case=cases())
    def agrees(case: dict) -> None:
        assert_agrees(backend, case, n_steps=3 if interpreted else 5)

    agrees()


def assert_agrees(backend: str, case: dict, n_steps: int) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    device = device_of(backend)
    params, truth, grad_dtypes = [], [], []
    for dtype, grad_dtype, shape, layout in case["tensors"]:
        value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        truth.append(nn.Parameter(value.double().clone()))  # memory of its own
        params.append(nn.Parameter(lay_out(value.to(device), layout)))
        grad_dtypes.append(grad_dtype)
    optimizer = AdamCScheduleFreePlus(
        in_groups(params, case["cuts"]), backend=backend, **case["arguments"]
    )
    reference = AdamCScheduleFreePlusReference(in_groups(truth, case["cuts"]), **case["arguments"])
    optimizer.train()
    reference.train()
    steps = stream([p.shape for p in params], n_steps, missing=case["missing"], seed=case["seed"])
    for k, (loss, gradients) in enumerate(steps):
        for p, t, g, grad_dtype in zip(params, truth, gradients, grad_dtypes, strict=True):
            rounded = None if g is None else g.to(grad_dtype).double()
            set_gradients([p], [rounded], grad_dtype)
            set_gradients([t], [rounded])
        optimizer.step(loss=loss)
        reference.step(loss=loss)
        if k == 2:
            with optimizer.averaged():
                pass
    # one step size for all: a single low-precision tensor sets the precision of every other
    precise = all(p.dtype == torch.float64 for p in params)
    tolerance = 1e-11 if precise else 2e-5
    for p, t in zip(params, truth, strict=True):
        if t not in reference.state:
            assert torch.equal(p.detach().cpu().double(), t.detach())
            continue
        for name, value in optimizer.iterates(p)._asdict().items():
            torch.testing.assert_close(
                value.cpu().double(), reference.state[t][name], rtol=tolerance, atol=tolerance
            )
