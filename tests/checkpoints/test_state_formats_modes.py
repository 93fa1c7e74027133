"""State in 16 and in 8 bits: x, y and what is written, in either mode."""

import pytest
import torch
from format_runs import FORMATS, MODES, make, steps
from support import BACKENDS, assert_same_bits, bits, everything_of

from sfplus_kernels.contract.formats import whole


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_modes_are_exact(backend: str, state_format: str) -> None:
    """However often they change, and nothing is left behind."""
    optimizer, params = make(torch.bfloat16, backend, state_format)
    steps(optimizer, params, 5)
    before = everything_of(optimizer, params)
    for _ in range(100 if backend == "cpu" else 5):
        optimizer.eval()
        assert all("y_high" in state for state in optimizer.state.values())
        for p in params:
            assert torch.equal(p, optimizer.iterates(p).x.to(p.dtype))
        optimizer.train()
        with optimizer.averaged():
            pass
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert_same_bits(everything_of(optimizer, params), before)
    assert not any("y_high" in state for state in optimizer.state.values())


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_x_of_float32_parameters(backend: str, state_format: str) -> None:
    optimizer, params = make(torch.float32, backend, state_format)
    steps(optimizer, params, 5)
    expected = []
    for p in params:
        x, y, z = optimizer.iterates(p)
        e = optimizer.state[p]["displacement"].double()
        b = optimizer.state_dict()["param_groups"][0]["y_beta"]
        assert torch.equal(y, p)
        assert torch.allclose(x.double(), y.double() - (1 - b) * e, rtol=1e-6, atol=1e-7)
        assert torch.allclose(z.double(), y.double() + b * e, rtol=1e-6, atol=1e-7)
        expected.append(x)
    optimizer.eval()
    for p, x in zip(params, expected, strict=True):
        assert torch.equal(p, x)


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_written_wins(backend: str, mode: str, state_format: str) -> None:
    optimizer, params = make(torch.bfloat16, backend, state_format)
    steps(optimizer, params, 5)
    getattr(optimizer, mode)()
    p = params[2 if state_format == "16bit" else -1]
    with torch.no_grad():
        p[:5] = 0
        p[5:9] = 0.75
    written = p.detach()[:9].clone()
    untouched = [bits(value[9:]) for value in optimizer.iterates(p)]
    sequences = optimizer.iterates(p)
    held = sequences.y if mode == "train" else sequences.x
    # a remainder of half a place stays beside what was written in train mode
    assert torch.allclose(held[:9], written.float(), rtol=2**-8, atol=1e-30)
    optimizer.eval()
    optimizer.train()
    assert all(map(torch.equal, [bits(value[9:]) for value in optimizer.iterates(p)], untouched))
    bits_of_y = 24 if state_format == "16bit" else 16
    assert torch.allclose(optimizer.iterates(p).y, sequences.y, rtol=2.0**-bits_of_y * 8, atol=1e-7)
    steps(optimizer, params, 6, skip=5)
    assert p.isfinite().all()


def test_y_low_is_the_lower_half() -> None:
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 3)
    for p in params:
        y = optimizer.iterates(p).y
        assert torch.equal(whole(p.detach(), optimizer.state[p]["y_low"]), y)
        assert torch.allclose(y, p.float(), rtol=2**-8)
