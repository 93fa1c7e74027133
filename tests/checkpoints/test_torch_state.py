"""State of the optimizers that average nothing: torch's loaded, loaded by torch's, and their own resumed."""

import copy
from typing import Any

import pytest
import torch
from support import BACKENDS, SHAPES, assert_same_bits, device_of, make_params, through_a_file
from support.plain import PLAIN, go_on, plain_groups

from sfplus_kernels import SGD, AdamC, AdamW, AdamWScheduleFree
from sfplus_kernels.checkpoints.found import CannotTellError, check_optimizer

KINDS = pytest.mark.parametrize("name", PLAIN)


def twin(params: list) -> list:
    return [torch.nn.Parameter(p.detach().cpu().clone()) for p in params]


def assert_near(params: list, others: list, tolerance: float = 1e-12) -> None:
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(
            p.detach().cpu().double(), q.detach().cpu().double(), rtol=tolerance, atol=tolerance
        )


@KINDS
@pytest.mark.parametrize("backend", BACKENDS)
def test_torchs_state_is_continued(name: str, backend: str) -> None:
    member = PLAIN[name]
    off = {"normalized": False} if name == "adamc" else {}
    others = make_params()
    theirs = member.torchs(plain_groups(others, name), **member.everything)
    go_on(theirs, others, 7)
    params = [torch.nn.Parameter(p.detach().to(device_of(backend))) for p in twin(others)]
    mine = member.ours(plain_groups(params, name), backend=backend, lr=1.0, **off)
    mine.load_state_dict(through_a_file(theirs.state_dict()))
    for group, other in zip(mine.param_groups, theirs.param_groups, strict=True):
        assert all(group[key] == other[key] for key in ("lr", "weight_decay", "maximize"))
    go_on(mine, params, 15, skip=7)
    go_on(theirs, others, 15, skip=7)
    assert_near(params, others)
    if name != "sgd, no momentum":
        steps = [float(mine.state[p].get("step", 0)) for p in params]
        expected = [float(theirs.state[p].get("step", 0)) for p in others]
        assert name.startswith("sgd") or steps == expected


@KINDS
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["state_dict", "to_upstream_state_dict"])
def test_torch_continues_ours(name: str, backend: str, form: str) -> None:
    member = PLAIN[name]
    off = {"normalized": False} if name == "adamc" else {}
    params = make_params(device=device_of(backend))
    mine = member.ours(plain_groups(params, name), backend=backend, **member.everything, **off)
    go_on(mine, params, 7)
    others = twin(params)
    theirs = member.torchs(plain_groups(others, name))
    theirs.load_state_dict(through_a_file(getattr(mine, form)()))
    go_on(theirs, others, 15, skip=7)
    go_on(mine, params, 15, skip=7)
    assert_near(params, others)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """Also on another backend of the same arithmetic, as a copy and as a pickle."""
    member = PLAIN[name]
    params = make_params(dtype=dtype)
    optimizer = member.ours(plain_groups(params, name), backend="cpu", **member.everything)
    go_on(optimizer, params, 6)
    others = twin(params)
    resumed = member.ours(plain_groups(others, name), backend="cpu")
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    copies, copied = copy.deepcopy((params, optimizer))
    go_on(optimizer, params, 12, skip=6)
    for run, its in ((resumed, others), (copied, copies)):
        go_on(run, its, 12, skip=6)
        assert_same_bits([p.detach() for p in params], [p.detach() for p in its])
        assert_same_bits(optimizer.state_dict()["state"], run.state_dict()["state"])
        figures = [run.metrics()[key] for key in ("k", "lr_max", "scheduled_lr")]
        assert figures == [optimizer.metrics()[key] for key in ("k", "lr_max", "scheduled_lr")]


def test_bfloat16_of_torch_gets_a_master_of_the_weights() -> None:
    """Which are loaded after it."""
    others = make_params(dtype=torch.bfloat16)
    theirs = torch.optim.AdamW(others)
    go_on(theirs, others, 3)
    params = make_params(dtype=torch.bfloat16, seed=5)
    mine = AdamW(params)
    mine.load_state_dict(through_a_file(theirs.state_dict()))
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            p.copy_(q)
    go_on(mine, params, 4, skip=3)
    for p, q in zip(params, others, strict=True):
        if mine.state[p]:
            assert mine.state[p]["exp_avg"].dtype == torch.float32
            assert torch.equal(mine.state[p]["master_param"].bfloat16(), p.detach())
            assert float((p - q).detach().abs().max() if p.numel() else 0) < 0.02
    assert any(mine.state[p] for p in params)


def test_largest_learning_rate_comes_from_torchs_scheduler() -> None:
    others = make_params([(3,)])
    theirs = torch.optim.AdamW(others, lr=0.2)
    scheduler = torch.optim.lr_scheduler.LinearLR(theirs, 1.0, 0.0, 10)
    go_on(theirs, others, 2)
    for _ in range(5):
        scheduler.step()
    mine = AdamC(twin(others))
    mine.load_state_dict(theirs.state_dict())
    assert mine.param_groups[0]["lr"] == pytest.approx(0.1)
    assert mine.metrics()["lr_max"] == [0.2]


def test_other_states_are_refused() -> None:
    params = make_params([(3,), (4,)])

    def state_of(make: Any, **more: Any) -> Any:
        others = make_params([(3,), (4,)])
        optimizer = make(others, **more)
        if hasattr(optimizer, "train"):
            optimizer.train()
        go_on(optimizer, others, 3)
        return optimizer.state_dict()

    cases = [
        (AdamW, state_of(torch.optim.Adam), r"it was torch.optim.Adam\)"),
        (AdamW, state_of(torch.optim.SGD), "lacks betas, eps"),
        (AdamW, state_of(torch.optim.AdamW, amsgrad=True), "amsgrad is True, which AdamW does not"),
        (SGD, state_of(torch.optim.AdamW), "lacks dampening, momentum, nesterov"),
        (AdamW, state_of(AdamWScheduleFree), "saved by AdamWScheduleFree; expected one of AdamW"),
        (AdamC, state_of(AdamW), "saved by AdamW; expected one of AdamC"),
        (AdamWScheduleFree, state_of(torch.optim.AdamW), "another optimizer"),
    ]
    for make, state, message in cases:
        optimizer = make(params)
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
        assert_same_bits(before, optimizer.state_dict())
    broken = state_of(torch.optim.AdamW)
    del broken["state"][1]["exp_avg_sq"]
    with pytest.raises(ValueError, match=r"parameter 1 has the keys .*expected.*exp_avg_sq"):
        AdamW(params).load_state_dict(broken)
    broken = state_of(torch.optim.AdamW)
    broken["state"][0]["exp_avg"] = torch.zeros(7)
    with pytest.raises(
        ValueError, match=r"exp_avg of parameter 0 has shape \(7,\); expected \(3,\)"
    ):
        AdamW(params).load_state_dict(broken)


def test_export_says_that_there_is_nothing_to_take_out() -> None:
    for make in (AdamW, AdamC, SGD):
        with pytest.raises(CannotTellError, match=f"was {make.__name__}, which averages nothing"):
            check_optimizer(make(make_params([(3,)])).state_dict()["param_groups"], [])


@pytest.mark.parametrize("more", [{"normalized": True}, {"max_grad_norm": 1.0}])
def test_what_torch_lacks_is_not_left_out_in_silence(more: dict[str, Any]) -> None:
    params = make_params([(3,)])
    optimizer = SGD(params, **more)
    go_on(optimizer, params, 2)
    with pytest.raises(
        ValueError, match=f"group 0 has .*{next(iter(more))}.*torch's class does not"
    ):
        optimizer.to_upstream_state_dict()


def test_state_is_what_torch_keeps() -> None:
    for name, member in PLAIN.items():
        params = make_params(SHAPES, torch.float32)
        optimizer = member.ours(params, **member.everything)
        go_on(optimizer, params, 2)
        for param in params:
            if optimizer.state[param]:
                assert set(optimizer.state[param]) == {*member.buffers, "step"}, name
        expected = {"float32": sum(p.numel() for p in params)} if member.buffers else {}
        assert optimizer.state_formats() == expected


def test_what_torchs_class_was_asked_for_goes_both_ways() -> None:
    """What has no effect here too, and a learning rate that falls: but not what is ours."""
    asked = {"maximize": True, "foreach": True, "fused": None, "capturable": True, "eps": 1e-6}
    params = make_params([(3,), (4,)])
    optimizer = AdamW(params, lr=0.5, **asked)  # type: ignore[arg-type]
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # writes initial_lr
    go_on(optimizer, params, 2)
    theirs = torch.optim.AdamW(twin(params))
    theirs.load_state_dict(through_a_file(optimizer.to_upstream_state_dict()))
    (group,) = theirs.param_groups
    assert {key: group[key] for key in asked} == asked
    assert (group["lr"], group["initial_lr"], group["amsgrad"]) == (0.5, 0.5, False)
    assert not {"row_norm", "state_format", "skip_nonfinite", "k", "optimizer"} & set(group)
    back = AdamW(twin(params))
    back.load_state_dict(through_a_file(theirs.state_dict()))
    assert {key: back.param_groups[0][key] for key in asked} == asked
