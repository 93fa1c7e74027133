"""State in 16 bits: what is kept, saved, brought into another format, and what is refused."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from support import BACKENDS, assert_same_bits, bits, device_of, make_params, set_gradients, stream
from support.family import FAMILY, drive, groups_of

import sfplus_kernels as ours
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.contract.formats import whole

SHAPES = [(0,), (7,), (33, 5), (), (64, 3)]
DTYPES = [torch.float32, torch.bfloat16]
MODES = ["train", "eval"]


def make(
    dtype: torch.dtype, backend: str = "cpu", state_format: str = "16bit", **more: Any
) -> tuple[Any, list]:
    params = make_params(SHAPES, dtype, device_of(backend))
    arguments = {"lr": 0.3, "weight_decay": 1.0, **more}
    return AdamCScheduleFreePlus(
        params, backend=backend, state_format=state_format, **arguments
    ), params


def steps(optimizer: Any, params: list, n: int, skip: int = 0) -> None:
    optimizer.train()
    for k, (loss, gradients) in enumerate(stream([p.shape for p in params], n, missing=0.2)):
        if k >= skip:
            set_gradients(params, gradients)
            optimizer.step(loss=loss)


def everything_of(optimizer: Any, params: list) -> Any:
    return copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params]))


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load(optimizer: Any, params: list, saved: Any, *, model_first: bool = True) -> None:
    if not model_first:
        optimizer.load_state_dict(saved[0])
    with torch.no_grad():
        for p, value in zip(params, saved[1], strict=True):
            p.copy_(value)
    if model_first:
        optimizer.load_state_dict(saved[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_resumed_run_is_the_uninterrupted_one(backend: str, dtype: torch.dtype, mode: str) -> None:
    optimizer, params = make(dtype, backend)
    steps(optimizer, params, 4)
    getattr(optimizer, mode)()
    saved = through_a_file(everything_of(optimizer, params))
    steps(optimizer, params, 8, skip=4)
    for model_first in (True, False):
        other, others = make(dtype, backend, rounding_seed=5)  # the saved seed counts
        load(other, others, saved, model_first=model_first)
        assert other.param_groups[0]["train_mode"] == (mode == "train")
        steps(other, others, 8, skip=4)
        assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("mode", MODES)
def test_copies_go_on_alike(mode: str, copied: Any) -> None:
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 4)
    getattr(optimizer, mode)()
    other, others = copied((optimizer, params))
    steps(optimizer, params, 7, skip=4)
    steps(other, others, 7, skip=4)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


@pytest.mark.parametrize("backend", BACKENDS)
def test_modes_are_exact(backend: str) -> None:
    """However often they change, and nothing is left behind."""
    optimizer, params = make(torch.bfloat16, backend)
    steps(optimizer, params, 5)
    before = everything_of(optimizer, params)
    for _ in range(5):
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_x_of_float32_parameters(backend: str) -> None:
    optimizer, params = make(torch.float32, backend)
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_written_wins(backend: str, mode: str) -> None:
    optimizer, params = make(torch.bfloat16, backend)
    steps(optimizer, params, 5)
    getattr(optimizer, mode)()
    p = params[2]
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
    assert torch.allclose(optimizer.iterates(p).y, sequences.y, rtol=1e-6, atol=1e-7)
    steps(optimizer, params, 6, skip=5)
    assert p.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_format_loads_into_any_other(dtype: torch.dtype, mode: str) -> None:
    optimizer, params = make(dtype, state_format="float32")
    steps(optimizer, params, 6)
    getattr(optimizer, mode)()
    saved = through_a_file(everything_of(optimizer, params))
    for model_first in (True, False):
        other, others = make(dtype)
        load(other, others, saved, model_first=model_first)
        for p, q in zip(params, others, strict=True):
            for left, right in zip(other.iterates(q), optimizer.iterates(p), strict=True):
                assert torch.allclose(left, right, rtol=1e-6, atol=1e-5)  # by the rounding of e
            held = (
                0 if dtype == torch.float32 and mode == "eval" else 1
            )  # x or y are what they were
            assert torch.equal(other.iterates(q)[held], optimizer.iterates(p)[held])
            kept, state = optimizer.state[p], other.state[q]
            for name in ("exp_avg", "exp_avg_sq", "displacement"):
                assert torch.equal(state[name], kept[name].to(state[name].dtype))
                assert state[name].dtype.itemsize == 2
        assert other.param_groups[0]["state_format"] == "16bit"
        once = through_a_file(everything_of(other, others))
        # and back, which loses nothing more, there and here
        back, backs = make(dtype, state_format="float32")
        load(back, backs, once, model_first=model_first)
        for q, r in zip(others, backs, strict=True):
            assert_same_bits(list(back.iterates(r)), list(other.iterates(q)))
            assert {v.dtype.itemsize for v in back.state[r].values() if v.dim()} <= {4}
        again, agains = make(dtype)
        load(again, agains, through_a_file(everything_of(back, backs)))
        again.state_dict()
        for q, r in zip(others, agains, strict=True):
            assert_same_bits(dict(again.state[r]), dict(other.state[q]))
        steps(again, agains, 9, skip=6)
        steps(other, others, 9, skip=6)
        assert_same_bits([p.detach() for p in agains], [p.detach() for p in others])


def test_a_checkpoint_from_before_the_formats() -> None:
    optimizer, params = make(torch.bfloat16, state_format="float32")
    steps(optimizer, params, 4)
    saved = through_a_file(everything_of(optimizer, params))
    for group in saved[0]["param_groups"]:
        del group["state_format"], group["rounding_seed"]
    other, others = make(torch.bfloat16)
    load(other, others, saved)
    assert other.state_dict()["param_groups"][0]["rounding_seed"] == 0
    assert torch.equal(other.iterates(others[2]).y, optimizer.iterates(params[2]).y)


def test_formats_of_groups() -> None:
    params = make_params([(5,), (6,), (7,)], torch.float32)
    groups = [{"params": params[:2]}, {"params": params[2:], "state_format": "16bit"}]
    optimizer = AdamWScheduleFree(groups)
    steps(optimizer, params, 2)
    kept = [optimizer.state[p]["displacement"].dtype for p in params]
    assert kept == [torch.float32, torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("name", FAMILY)
def test_every_class_runs(name: str, dtype: torch.dtype) -> None:
    """Close to what it does with float32 state, with half of the bytes."""
    found = []
    for state_format in ("float32", "16bit"):
        params = make_params([(40, 30), (300,)], dtype)
        arguments = {**FAMILY[name].everything, "state_format": state_format}
        optimizer = FAMILY[name].ours(groups_of(params, name), **arguments)
        drive(optimizer, params, 12, missing=0.2)
        optimizer.eval()
        held = {v.untyped_storage().data_ptr(): v.nbytes for v in state_of(optimizer, params)}
        optimizer.train()
        found.append((torch.cat([optimizer.iterates(p).x.flatten() for p in params]), held))
    (x, held), (x_16, held_16) = found
    assert torch.allclose(x, x_16, rtol=0.02, atol=0.02)
    assert torch.equal(x, x_16) == (dtype == torch.float16)
    if dtype != torch.float16:
        parked = 0 if dtype == torch.float32 or "closure" in name else 2 * 1500
        assert sum(held_16.values()) == sum(held.values()) / 2 + parked


def state_of(optimizer: Any, params: list) -> list[torch.Tensor]:
    return [v for p in params for v in optimizer.state[p].values() if v.shape == p.shape]


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, 8), (torch.float32, 6)])
def test_bytes_of_a_transformer_block(dtype: torch.dtype, expected: int) -> None:
    block = torch.nn.TransformerEncoderLayer(64, 4, 256, dtype=dtype)
    params = list(block.parameters())
    optimizer = AdamCScheduleFreePlus(params, state_format="16bit")
    steps(optimizer, params, 2)
    numel = sum(p.numel() for p in params)
    assert sum(v.nbytes for v in state_of(optimizer, params)) == expected * numel
    assert {v.dtype.itemsize for v in state_of(optimizer, params)} == {2}


def test_a_skipped_step_changes_nothing() -> None:
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 3)
    before = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    for p in params:
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step(loss=1.0)
    after = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    assert all(map(torch.equal, after, before))
    assert optimizer.metrics()["skipped_steps"] == 1


def test_state_that_a_loader_makes() -> None:
    """In eval mode it has what is saved there, too."""
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 4)
    optimizer.eval()
    saved = everything_of(optimizer, params)
    for lr in (0.0,):
        other, others = make(torch.bfloat16, lr=lr)
        other.eval()
        for p in others:
            p.grad = torch.zeros_like(p)
        other.step()
        for p, q in zip(params, others, strict=True):
            if p in optimizer.state:
                assert set(other.state[q]) == set(optimizer.state[p])
        load(other, others, saved)
        assert_same_bits(everything_of(other, others)[0]["state"], saved[0]["state"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_export_of_a_file(dtype: torch.dtype, mode: str, tmp_path: Any) -> None:
    from sfplus_kernels.checkpoints.files import read
    from sfplus_kernels.checkpoints.found import averaged

    model = torch.nn.Linear(8, 5, dtype=dtype)
    params = list(model.parameters())
    optimizer = SGDScheduleFree(params, lr=0.1, state_format="16bit")
    steps(optimizer, params, 6)
    expected = [optimizer.iterates(p).x.to(dtype) for p in params]
    getattr(optimizer, mode)()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "checkpoint.pt")
    weights = averaged(read(tmp_path / "checkpoint.pt"))
    for name, x in zip(("weight", "bias"), expected, strict=True):
        assert torch.equal(weights[name], x)


def test_upstreams_state() -> None:
    optimizer, params = make_given(torch.bfloat16, "16bit")
    steps(optimizer, params, 5)
    saved = optimizer.to_upstream_state_dict()
    z = saved["state"][1]["z"]
    assert torch.equal(z, optimizer.iterates(params[1]).z.to(z.dtype))
    other, others = make_given(torch.bfloat16, "16bit")
    load(other, others, (saved, [p.detach() for p in params]))
    steps(other, others, 6, skip=5)
    assert other.state[others[1]]["displacement"].dtype == torch.float16


def make_given(dtype: torch.dtype, state_format: str) -> tuple[Any, list]:
    params = make_params([(40, 30), (300,)], dtype)
    return AdamWScheduleFree(params, lr=0.01, state_format=state_format), params


def test_y_low_is_the_lower_half() -> None:
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 3)
    for p in params:
        y = optimizer.iterates(p).y
        assert torch.equal(whole(p.detach(), optimizer.state[p]["y_low"]), y)
        assert torch.allclose(y, p.float(), rtol=2**-8)


def refused(message: str, cls: Any, *arguments: Any, **named: Any) -> None:
    with pytest.raises(ValueError, match=message):
        cls(*arguments, **named)


def test_what_is_refused() -> None:
    params = make_params([(5,)], torch.float32)
    refused("'4bit'; expected 'float32' or '16bit'", AdamWScheduleFree, params, state_format="4bit")
    double = make_params([(5,)])
    refused("is float64; expected 'float32'", AdamWScheduleFree, double, state_format="16bit")
    for seed in (-1, 2**32, 0.5, True):
        refused("rounding_seed is", AdamWScheduleFree, params, rounding_seed=seed)
    base = torch.optim.SGD(params, lr=0.1)
    refused("which 16 bits cannot hold", ours.ScheduleFreeWrapper, base, state_format="16bit")
    groups = [
        {"params": params[:1]},
        {"params": make_params([(6,)], torch.float32), "rounding_seed": 1},
    ]
    refused("rounding_seed", AdamWScheduleFree, groups)


def test_a_format_that_is_changed_in_mid_run_is_refused() -> None:
    optimizer, params = make(torch.float32)
    steps(optimizer, params, 3)
    before = everything_of(optimizer, params)
    optimizer.param_groups[0]["state_format"] = "float32"
    set_gradients(params, [torch.ones(p.shape) for p in params])
    with pytest.raises(RuntimeError, match="state_format is 'float32', but its state is"):
        optimizer.step(loss=1.0)
    optimizer.param_groups[0]["state_format"] = "16bit"
    assert_same_bits(everything_of(optimizer, params), before)


def test_state_of_the_other_mode_is_refused() -> None:
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["train_mode"] = False
    with pytest.raises(ValueError, match="y_high"):
        optimizer.load_state_dict(saved)
