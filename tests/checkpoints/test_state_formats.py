"""State in 16 and in 8 bits: what is kept, saved, brought into another format, and what is refused."""

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
from sfplus_kernels.state.moments import moments_of

SHAPES = [(0,), (7,), (33, 5), (), (64, 3), (64, 2, 32)]
DTYPES = [torch.float32, torch.bfloat16]
MODES = ["train", "eval"]
FORMATS = ["16bit", "8bit"]


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


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_resumed_run_is_the_uninterrupted_one(
    backend: str, dtype: torch.dtype, mode: str, state_format: str
) -> None:
    optimizer, params = make(dtype, backend, state_format)
    steps(optimizer, params, 4)
    getattr(optimizer, mode)()
    saved = through_a_file(everything_of(optimizer, params))
    steps(optimizer, params, 8, skip=4)
    for model_first in (True, False):
        other, others = make(dtype, backend, state_format, rounding_seed=5)  # the saved one counts
        load(other, others, saved, model_first=model_first)
        assert other.param_groups[0]["train_mode"] == (mode == "train")
        steps(other, others, 8, skip=4)
        assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("mode", MODES)
def test_copies_go_on_alike(mode: str, copied: Any, state_format: str) -> None:
    optimizer, params = make(torch.bfloat16, state_format=state_format)
    steps(optimizer, params, 4)
    getattr(optimizer, mode)()
    other, others = copied((optimizer, params))
    steps(optimizer, params, 7, skip=4)
    steps(other, others, 7, skip=4)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


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


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_format_loads_into_any_other(dtype: torch.dtype, mode: str, state_format: str) -> None:
    optimizer, params = make(dtype, state_format="float32")
    steps(optimizer, params, 6)
    getattr(optimizer, mode)()
    saved = through_a_file(everything_of(optimizer, params))
    for model_first in (True, False):
        other, others = make(dtype, state_format=state_format)
        load(other, others, saved, model_first=model_first)
        for p, q in zip(params, others, strict=True):
            in_8_bits = state_format == "8bit" and p.numel() >= 4096
            in_24_bits = in_8_bits and dtype == torch.bfloat16
            for left, right in zip(other.iterates(q), optimizer.iterates(p), strict=True):
                # by the rounding of e, and of y
                by = (
                    2**-11 * float(optimizer.state[p]["displacement"].abs().amax())
                    if p.numel()
                    else 0
                )
                assert torch.allclose(left, right, rtol=2**-16 if in_24_bits else 1e-6, atol=by)
            # what is held is what it was
            if dtype == torch.float32:
                assert torch.equal(q, p)
            elif not in_24_bits:
                assert torch.equal(other.iterates(q).y, optimizer.iterates(p).y)
            kept, state = optimizer.state[p], other.state[q]
            if in_8_bits:
                compare_codes(kept, state)
            for name in (
                ("displacement",) if in_8_bits else ("exp_avg", "exp_avg_sq", "displacement")
            ):
                assert torch.equal(state[name], kept[name].to(state[name].dtype))
                assert state[name].dtype.itemsize == 2
        assert other.param_groups[0]["state_format"] == state_format
        once = through_a_file(everything_of(other, others))
        # and back, which loses nothing more, there and here
        back, backs = make(dtype, state_format="float32")
        load(back, backs, once, model_first=model_first)
        for q, r in zip(others, backs, strict=True):
            assert_same_bits(list(back.iterates(r)), list(other.iterates(q)))
            assert {v.dtype.itemsize for v in back.state[r].values() if v.dim()} <= {4}
        again, agains = make(dtype, state_format=state_format)
        load(again, agains, through_a_file(everything_of(back, backs)))
        again.state_dict()
        for q, r in zip(others, agains, strict=True):
            assert_same_bits(dict(again.state[r]), dict(other.state[q]))
        steps(again, agains, 9, skip=6)
        steps(other, others, 9, skip=6)
        assert_same_bits([p.detach() for p in agains], [p.detach() for p in others])


def compare_codes(kept: Any, state: Any) -> None:
    """To half a last place: 6.3 % of m and of v, and what v's rounding makes of m's unit."""
    assert not {"exp_avg", "exp_avg_sq"} & state.keys()
    assert state["exp_avg_codes"].dtype == state["exp_avg_sq_codes"].dtype == torch.uint8
    found = moments_of(state)
    v, m = kept["exp_avg_sq"], kept["exp_avg"]
    assert torch.allclose(found["exp_avg_sq"], v, rtol=0.0626, atol=0)
    assert (found["exp_avg_sq"] > 0).equal(v > 0)
    # below 2^-6 of E4M3's unit places are equal
    place = found["exp_avg_sq"].sqrt() / 32 * 2**-9
    assert ((found["exp_avg"] - m).abs() <= 0.0626 * m.abs() + 0.51 * place).all()


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


BYTES_OF_8 = {  # in state, of 4,096 elements of each class: with the exponents
    "exp_avg": 1,
    "exp_avg_sq": 1 + 1 / 32,
    "displacement": 2,
    "master_param": 1,  # y_low_byte
}


@pytest.mark.parametrize("small", FORMATS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("name", FAMILY)
def test_every_class_runs(name: str, dtype: torch.dtype, small: str) -> None:
    """Close to what it does with float32 state, with half of the bytes, or less."""
    if small == "8bit" and "closure" in name and dtype == torch.bfloat16:
        pytest.skip("refused, which test_what_is_refused sees")
    found = []
    for state_format in ("float32", small):
        params = make_params([(64, 64), (300,)], dtype)
        arguments = {**FAMILY[name].everything, "state_format": state_format}
        optimizer = FAMILY[name].ours(groups_of(params, name), **arguments)
        drive(optimizer, params, 12, missing=0.2)
        optimizer.eval()
        kept = [{k: v.nbytes for k, v in optimizer.state[p].items() if v.dim()} for p in params]
        optimizer.train()
        found.append((torch.cat([optimizer.iterates(p).x.flatten() for p in params]), kept))
    (x, full), (x_small, kept) = found
    assert ((x - x_small).abs().mean() < 0.02 * x.abs().mean()) == (x.abs().mean() > 0)
    assert torch.equal(x, x_small) == (dtype == torch.float16)
    if dtype == torch.float16:
        assert kept == full
        return
    matrix, vector = (sum(n for k, n in one.items() if k != "y_high") for one in kept)
    assert vector == sum(full[1].values()) / 2
    if small == "16bit" or (dtype == torch.float32 and "exp_avg_sq" not in full[0]):
        assert matrix == sum(full[0].values()) / 2
    else:
        assert matrix == 4096 * sum(BYTES_OF_8[k] for k in full[0])
    parks = dtype == torch.bfloat16 and "closure" not in name
    assert [one.get("y_high", 0) for one in kept] == ([8192, 600] if parks else [0, 0])


def state_of(optimizer: Any, params: list) -> list[torch.Tensor]:
    return [v for p in params for v in optimizer.state[p].values() if v.dim()]


@pytest.mark.parametrize(
    ("state_format", "dtype", "expected"),
    [
        ("16bit", torch.bfloat16, 8),
        ("16bit", torch.float32, 6),
        ("8bit", torch.bfloat16, 5.03),
        ("8bit", torch.float32, 4.03),
    ],
)
def test_bytes_of_a_transformer_block(
    state_format: str, dtype: torch.dtype, expected: float
) -> None:
    block = torch.nn.TransformerEncoderLayer(64, 4, 256, dtype=dtype)
    params = [p for p in block.parameters() if state_format == "16bit" or p.dim() > 1]
    optimizer = AdamCScheduleFreePlus(params, state_format=state_format)
    steps(optimizer, params, 6)
    numel = sum(p.numel() for p in params)
    kept = sum(v.nbytes for v in state_of(optimizer, params)) / numel
    assert kept == pytest.approx(expected, abs=0.0013)
    assert max(v.dtype.itemsize for v in state_of(optimizer, params)) == 2


@pytest.mark.parametrize("state_format", FORMATS)
def test_a_step_allocates_nothing_that_grows(state_format: str) -> None:
    allocated = {}
    for backend in ("cpu", "eager"):
        optimizer, params = make(torch.bfloat16, backend, state_format)
        steps(optimizer, params, 2)
        set_gradients(params, [torch.ones(p.shape) for p in params])
        kinds = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
            optimizer.step(loss=1.0)
        allocated[backend] = max(e.self_cpu_memory_usage for e in profile.events())
    assert allocated["cpu"] < 4096 < 4 * 4096 <= allocated["eager"]


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_step_changes_nothing(backend: str, state_format: str) -> None:
    optimizer, params = make(torch.bfloat16, backend, state_format)
    steps(optimizer, params, 3)
    before = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    for p in params:
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step(loss=1.0)
    after = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    assert all(map(torch.equal, after, before))
    assert optimizer.metrics()["skipped_steps"] == 1


@pytest.mark.parametrize("state_format", FORMATS)
def test_state_that_a_loader_makes(state_format: str) -> None:
    """In eval mode it has what is saved there, too."""
    optimizer, params = make(torch.bfloat16, state_format=state_format)
    steps(optimizer, params, 4)
    optimizer.eval()
    saved = everything_of(optimizer, params)
    for lr in (0.0,):
        other, others = make(torch.bfloat16, state_format=state_format, lr=lr)
        other.eval()
        for p in others:
            p.grad = torch.zeros_like(p)
        other.step()
        for p, q in zip(params, others, strict=True):
            if p in optimizer.state:
                assert set(other.state[q]) == set(optimizer.state[p])
        load(other, others, saved)
        assert_same_bits(everything_of(other, others)[0]["state"], saved[0]["state"])


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_export_of_a_file(dtype: torch.dtype, mode: str, state_format: str, tmp_path: Any) -> None:
    from sfplus_kernels.checkpoints.files import read
    from sfplus_kernels.checkpoints.found import averaged

    model = torch.nn.Linear(64, 70, dtype=dtype)
    params = list(model.parameters())
    optimizer = SGDScheduleFree(params, lr=0.1, state_format=state_format)
    steps(optimizer, params, 6)
    expected = [optimizer.iterates(p).x.to(dtype) for p in params]
    getattr(optimizer, mode)()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "checkpoint.pt")
    weights = averaged(read(tmp_path / "checkpoint.pt"))
    for name, x in zip(("weight", "bias"), expected, strict=True):
        assert torch.equal(weights[name], x)


@pytest.mark.parametrize("state_format", FORMATS)
def test_upstreams_state(state_format: str) -> None:
    optimizer, params = make_given(torch.bfloat16, state_format)
    steps(optimizer, params, 5)
    saved = optimizer.to_upstream_state_dict()
    z = saved["state"][0]["z"]
    assert torch.equal(z, optimizer.iterates(params[0]).z.to(z.dtype))
    v = moments_of(optimizer.state[params[0]])["exp_avg_sq"]
    assert torch.equal(saved["state"][0]["exp_avg_sq"], v.to(torch.bfloat16))
    other, others = make_given(torch.bfloat16, state_format)
    load(other, others, (saved, [p.detach() for p in params]))
    steps(other, others, 6, skip=5)
    assert other.state[others[1]]["displacement"].dtype == torch.float16


def make_given(dtype: torch.dtype, state_format: str) -> tuple[Any, list]:
    params = make_params([(64, 96), (300,)], dtype)
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
    refused(
        "'4bit'; expected 'float32', '16bit' or '8bit'",
        AdamWScheduleFree,
        params,
        state_format="4bit",
    )
    double = make_params([(5,)])
    refused("is float64; expected 'float32'", AdamWScheduleFree, double, state_format="16bit")
    for seed in (-1, 2**32, 0.5, True):
        refused("rounding_seed is", AdamWScheduleFree, params, rounding_seed=seed)
    base = torch.optim.SGD(params, lr=0.1)
    for state_format in FORMATS:
        refused("16 bits cannot hold", ours.ScheduleFreeWrapper, base, state_format=state_format)
    low = make_params([(5,)], torch.bfloat16)
    for closure_form in (
        ours.AdamWScheduleFreeClosure,
        ours.SGDScheduleFreeClosure,
        ours.RAdamScheduleFreeClosure,
    ):
        refused("24 bits twice a step", closure_form, low, state_format="8bit")
    m_and_v: dict[str, Any] = {"inner_momentum": 0.98, "betas": (0.9, 0.95), "state_format": "8bit"}
    refused(r"\(0.98, 0.95\); expected that of m, squared", AdamWScheduleFree, params, **m_and_v)
    AdamWScheduleFree(params, **{**m_and_v, "inner_momentum": 0})
    groups = [
        {"params": params[:1]},
        {"params": make_params([(6,)], torch.float32), "rounding_seed": 1},
    ]
    refused("rounding_seed", AdamWScheduleFree, groups)


@pytest.mark.parametrize(
    ("state_format", "other"),
    [("16bit", "float32"), ("8bit", "float32"), ("8bit", "16bit"), ("16bit", "8bit")],
)
def test_a_format_that_is_changed_in_mid_run_is_refused(state_format: str, other: str) -> None:
    optimizer, params = make(torch.float32, state_format=state_format)
    steps(optimizer, params, 3)
    before = everything_of(optimizer, params)
    optimizer.param_groups[0]["state_format"] = other
    set_gradients(params, [torch.ones(p.shape) for p in params])
    with pytest.raises(RuntimeError, match=f"state_format is '{other}', but its state is"):
        optimizer.step(loss=1.0)
    optimizer.param_groups[0]["state_format"] = state_format
    assert_same_bits(everything_of(optimizer, params), before)


def test_state_of_the_other_mode_is_refused() -> None:
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["train_mode"] = False
    with pytest.raises(ValueError, match="y_high"):
        optimizer.load_state_dict(saved)
