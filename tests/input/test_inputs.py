"""Inputs that work although they are awkward: sizes, strides, layouts, many tensors."""

import time
from itertools import pairwise

import pytest
import torch
from support import EVERYTHING, device_of, make_params, run, set_gradients, stream
from torch import Tensor, nn

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.backends import table
from sfplus_kernels.reference import AdamCScheduleFreePlusReference


def check_against_reference(
    params: list[nn.Parameter], backend: str, gradients_like: list[Tensor] | None = None
) -> None:
    """A few steps on ``params`` as they lie in memory, beside the reference on contiguous copies.

    ``gradients_like`` gives the strides that the gradients are to have.
    """
    truth = [nn.Parameter(p.detach().cpu().clone().contiguous().double()) for p in params]
    optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING)
    reference = AdamCScheduleFreePlusReference(truth, **EVERYTHING)
    optimizer.train()
    reference.train()
    for k, (loss, gradients) in enumerate(stream([p.shape for p in params], 8, missing=0.2)):
        set_gradients(truth, gradients)
        for i, (p, g) in enumerate(zip(params, gradients, strict=True)):
            if g is None or gradients_like is None:
                set_gradients([p], [g])
            else:
                layout = gradients_like[i]
                p.grad = torch.empty_strided(
                    layout.shape, layout.stride(), dtype=p.dtype, device=p.device
                ).copy_(g)
        optimizer.step(loss=loss)
        reference.step(loss=loss)
        if k == 4:
            optimizer.eval()
            optimizer.train()
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[params[0].dtype]
    for p, t in zip(params, truth, strict=True):
        if t in reference.state:
            for name, value in optimizer.iterates(p)._asdict().items():
                torch.testing.assert_close(
                    value.cpu().double(), reference.state[t][name], rtol=tolerance, atol=tolerance
                )
            torch.testing.assert_close(
                p.detach().cpu().double(), t.detach(), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_strides(backend: str, dtype: torch.dtype) -> None:
    device = device_of(backend)
    base = make_params([(40, 30), (6, 5, 4, 3), (50,), (9, 8)], dtype, device)
    a, b, c, d = (p.detach() for p in base)
    params = [
        nn.Parameter(a.t()),  # transposed, dense
        nn.Parameter(b.to(memory_format=torch.channels_last)),
        nn.Parameter(c[::2]),  # with gaps
        nn.Parameter(d[1:, 2:7]),  # a window
        nn.Parameter(b.permute(2, 0, 3, 1)[1]),
    ]
    assert not any(p.is_contiguous() for p in params)
    gaps = c[1::2].clone()
    check_against_reference(params, backend)
    assert torch.equal(c[1::2], gaps)  # what lies between was not touched


def test_gradients_of_other_strides(backend: str) -> None:
    device = device_of(backend)
    params = make_params([(12, 7), (2, 3, 4, 5), (20,), (6, 1, 5)], device=device)
    layouts = [
        torch.empty(7, 12).t(),
        torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(40)[::2],
        torch.empty(6, 1, 5).transpose(0, 2).contiguous().transpose(0, 2),
    ]
    check_against_reference(params, backend, layouts)


def test_gradients_of_other_strides_that_stay_where_they_are(backend: str) -> None:
    p, q = make_params([(6, 5)], device=device_of(backend))[0], make_params([(6, 5)])[0]
    optimizer = AdamCScheduleFreePlus([p], backend=backend)
    reference = AdamCScheduleFreePlusReference([q])
    optimizer.train()
    reference.train()
    p.grad = torch.zeros(5, 6, dtype=p.dtype, device=p.device).t()
    for loss, (g,) in stream([(6, 5)], 5):
        assert g is not None
        p.grad.copy_(g)
        q.grad = g
        optimizer.step(loss=loss)
        reference.step(loss=loss)
    torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-11, atol=1e-12)


def test_expanded_gradient(backend: str) -> None:
    p = make_params([(4, 6)], device=device_of(backend))[0]
    q = make_params([(4, 6)])[0]
    optimizer = AdamCScheduleFreePlus([p], backend=backend)
    reference = AdamCScheduleFreePlusReference([q])
    optimizer.train()
    reference.train()
    for _ in range(3):
        p.grad = torch.ones((), dtype=p.dtype, device=p.device).expand(4, 6)
        q.grad = torch.ones_like(q)
        optimizer.step(loss=1.0)
        reference.step(loss=1.0)
    torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_views_at_odd_addresses(backend: str, dtype: torch.dtype) -> None:
    params, outside = [], []
    for offset, flat in enumerate(make_params([(2000,)] * 3, dtype, device_of(backend)), 1):
        ends = [offset, offset + 1, offset + 8, offset + 1201]
        params += [nn.Parameter(flat.detach()[i:j]) for i, j in pairwise(ends)]
        outside += [flat.detach()[:offset], flat.detach()[ends[-1] :]]
    before = [part.clone() for part in outside]
    check_against_reference(params, backend)
    assert all(torch.equal(part, old) for part, old in zip(outside, before, strict=True))


@pytest.mark.parametrize(
    "numels", [(0,), (1, 2, 3, 15, 16, 17), (1023, 1024, 1025, 4097), (16385,), (40000,)]
)
def test_sizes_around_every_boundary(backend: str, numels: tuple[int, ...]) -> None:
    shapes = [*((numel,) for numel in numels), (3,)]
    check_against_reference(make_params(shapes, device=device_of(backend)), backend)


def test_sums_of_several_chunks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More chunks than slots for their sums, as from thousands of tensors or from large ones."""
    monkeypatch.setattr(table, "VIRTUAL_BLOCKS", 2)
    shapes = [(5,), (40,), (3, 7), (2,), (9,)]
    check_against_reference(make_params(shapes, device=device_of(backend)), backend)


def test_only_empty_tensors(backend: str) -> None:
    params = make_params([(0,), (0, 4)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
    run(optimizer, params, 2)
    assert optimizer.metrics()["k"] == 2
    optimizer.eval()
    assert optimizer.metrics()["scheduled_lr"] == [0.0]


def test_tied_parameters(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    model.to(device_of(backend))
    optimizer = AdamCScheduleFreePlus(model.parameters(), backend=backend, lr=0.1)
    optimizer.train()
    tokens = torch.arange(5, device=device_of(backend))
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(model(tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    assert model[2].weight is model[0].weight
    assert float(optimizer.state[model[0].weight]["step"]) == 10
    assert losses[-1] < losses[0]


def test_frozen_parameters(backend: str) -> None:
    params = make_params([(5,), (6,)], device=device_of(backend))
    params[0].requires_grad_(False)
    before = params[0].detach().clone()
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
    optimizer.train()
    for _ in range(3):
        set_gradients(params[1:], [torch.ones(6)])
        optimizer.step(loss=1.0)
    optimizer.eval()
    assert torch.equal(params[0].detach(), before)
    assert params[0] not in optimizer.state
    assert all(bool((value == params[0]).all()) for value in optimizer.iterates(params[0]))


def test_ten_thousand_small_tensors() -> None:
    """One launch per pass: the step on the cpu backend is not 10,000 times anything slow."""
    params = make_params([(8,)] * 10_000, torch.float32)
    optimizer = AdamCScheduleFreePlus(params, backend="cpu")
    optimizer.train()
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=1.0)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        optimizer.step(loss=1.0)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
    # the reference has them in one tensor: the step is the same, for its sums are of all elements
    together = nn.Parameter(
        torch.stack([p.detach() for p in make_params([(8,)] * 10_000, torch.float32)])
    )
    reference = AdamCScheduleFreePlusReference([together])
    reference.train()
    together.grad = torch.ones_like(together)
    for _ in range(6):
        reference.step(loss=1.0)
    found = torch.stack([p.detach() for p in params])
    torch.testing.assert_close(found, together.detach(), rtol=1e-5, atol=1e-6)


def test_several_hundred_groups(backend: str) -> None:
    params = make_params([(3,)] * 100, device=device_of(backend))
    truth = make_params([(3,)] * 100)
    groups, expected = (
        [{"params": [p], "lr": 0.1 + 0.01 * i} for i, p in enumerate(ps)] for ps in (params, truth)
    )
    optimizer = AdamCScheduleFreePlus(groups, backend=backend)
    reference = AdamCScheduleFreePlusReference(expected)
    run(optimizer, params, 3)
    run(reference, truth, 3)
    for p, q in zip(params, truth, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-11, atol=1e-13)


def test_empty_tensors_count_their_steps(backend: str) -> None:
    """A process may hold nothing of a parameter, and be the one that saves how often it was stepped."""
    params = make_params([(0,), (3,), (0, 2)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING)
    run(optimizer, params, 2)
    params[0].grad = None
    optimizer.step(loss=1.0)
    assert [float(optimizer.state[p]["step"]) for p in params] == [2, 3, 3]


def test_gradients_whose_sign_torch_has_yet_to_change(backend: str) -> None:
    ends = []
    for view in (torch.neg, torch._neg_view):
        params = make_params([(5, 3)], device=device_of(backend))
        optimizer = AdamCScheduleFreePlus(params, backend=backend, lr=0.1)
        optimizer.train()
        for k in range(3):
            params[0].grad = view(torch.full_like(params[0], k + 1.0))
            optimizer.step(loss=1.0)
        ends.append(params[0].detach())
    assert torch.equal(*ends)


def test_a_parameter_that_is_transposed_where_it_is(backend: str) -> None:
    """As one that is transposed and copied."""
    ends = []
    for change in (lambda p: p.t(), lambda p: p.t().contiguous()):
        params = make_params([(3, 3)], device=device_of(backend))
        optimizer = AdamCScheduleFreePlus(params, backend=backend, lr=0.1)
        optimizer.train()
        for k in range(4):
            if k == 2:
                params[0].data = change(params[0].data)
            params[0].grad = torch.arange(9.0, dtype=torch.float64).view(3, 3).to(params[0]) - k
            optimizer.step(loss=1.0)
        ends.append(params[0].detach())
    torch.testing.assert_close(*ends)
