"""What users, trainers and tools do to an optimizer's state and groups, one thing at a time."""

from __future__ import annotations

import collections
import copy
from typing import Any

import numpy
import pytest
import schedulefree
import torch
from support import BACKENDS, assert_same_bits, device_of, make_params
from support.family import FAMILY
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from truth import test_hands
from truth.test_hands import CLASSES, WITHOUT_AVERAGES, make, steps

import sfplus_kernels as ours

FAST = ["eager", "cpu"]
PLAIN = ["adamw", "sgd", "radam", "paper"]


def trained(name: str = "adamw", backend: str = "cpu", dtype: torch.dtype = torch.float64) -> Any:
    optimizer, params = make(name, backend, dtype)
    optimizer.train()
    steps(optimizer, params, 0, 3)
    return optimizer, params


@pytest.mark.parametrize("name", CLASSES)
def test_a_second_optimizer_over_one_state_is_refused(name: str) -> None:
    optimizer, params = make(name, "cpu", torch.float64)
    with pytest.raises(
        TypeError, match=r"expected one: pass it on as it is, or take copy\.deepcopy"
    ):
        copy.copy(optimizer)
    optimizer.train()
    steps(optimizer, params, 0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_that_moves_to_other_memory_is_followed(backend: str) -> None:
    optimizer, params = trained("plus", backend)
    before = [float(optimizer.state[p]["step"]) for p in params]
    old = []
    for p in params:
        for value in optimizer.state[p].values():
            old.append((value.detach(), value.detach().clone()))
            value.data = value.detach().clone()
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [k + 1 for k in before]
    for memory, values in old:
        assert torch.equal(memory, values)  # nothing was written to where it was


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "displacement", "step", "master_param"])
def test_a_replaced_tensor_counts(backend: str, key: str) -> None:
    """It decides the next step as if it had always been there, and the old one is left alone."""
    dtype = torch.bfloat16 if key == "master_param" else torch.float64
    optimizer, params = trained("adamw", backend, dtype)
    twin, twins = trained("adamw", backend, dtype)
    replaced = [optimizer.state[p][key] for p in params]
    kept = [value.clone() for value in replaced]
    for p, q in zip(params, twins, strict=True):
        optimizer.state[p][key] = optimizer.state[p][key] * 3
        twin.state[q][key].mul_(3)
        if key == "master_param":  # else what is in the parameter wins
            for one in (optimizer.state[p], twin.state[q]):
                p.data.copy_(one[key])
                q.data.copy_(one[key])
    steps(optimizer, params, 3, 5)
    steps(twin, twins, 3, 5)
    assert_same_bits([p.detach() for p in params], [q.detach() for q in twins])
    assert_same_bits(replaced, kept)


@pytest.mark.parametrize("name", CLASSES)
def test_two_ways_to_begin_anew_are_one(name: str) -> None:
    ends = []
    for clear in (lambda state, p: state.pop(p), lambda state, p: state.update({p: {}})):
        optimizer, params = trained(name)
        own = getattr(optimizer, "_averaging", optimizer)
        clear(own.state, params[1])
        steps(optimizer, params, 3, 6)
        ends.append(([p.detach() for p in params], dict(own.state[params[1]])))
    assert_same_bits(*ends)


@pytest.mark.parametrize("backend", FAST)
def test_a_parameter_that_is_away_does_not_count(backend: str) -> None:
    params = make_params([(3,), (4,), (5,)])
    optimizer = ours.AdamWScheduleFree(params, backend=backend)
    optimizer.train()

    def step() -> None:
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()

    step()
    group = optimizer.param_groups[0]
    away = group["params"].pop(0)
    for _ in range(40):
        step()
    assert float(optimizer.state[away]["step"]) == 1
    group["params"].append(away)
    step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [2, 42, 42]


@pytest.mark.parametrize("name", [*PLAIN, "plus"])
def test_asking_for_the_state_before_the_first_step_changes_nothing(name: str) -> None:
    ends = []
    for asked in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        kind = ours.AdamCScheduleFreePlus if name == "plus" else FAMILY[name].ours
        optimizer = kind(model.parameters(), lr=0.01)
        optimizer.train()
        if asked:
            get_optimizer_state_dict(model, optimizer)
        for _ in range(12):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step(*([lambda: 2.0] if name == "plus" else []))
        assert optimizer.metrics()["k"] == 12
        ends.append([p.detach() for p in model.parameters()])
    assert_same_bits(*ends)


WAYS_OF_WRITING = {
    "load_state_dict": lambda model, to: model.load_state_dict(to),
    "copy_": lambda model, to: model.weight.copy_(to["weight"]),
    "data.copy_": lambda model, to: model.weight.data.copy_(to["weight"]),
    "data": lambda model, to: setattr(model.weight, "data", to["weight"].clone()),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("way", WAYS_OF_WRITING)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_written_into_a_half_precision_parameter_wins(
    dtype: torch.dtype, backend: str, way: str, mode: str
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 5, bias=False).to(device_of(backend), dtype)
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = ours.AdamWScheduleFree(model.parameters(), lr=0.1, backend=backend)
    optimizer.train()
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    getattr(optimizer, mode)()
    with torch.no_grad():
        WAYS_OF_WRITING[way](model, saved)
    found = optimizer.iterates(model.weight)
    assert torch.equal((found.y if mode == "train" else found.x).to(dtype), saved["weight"])
    optimizer.train()
    found = optimizer.iterates(model.weight)
    written = (found.y if mode == "train" else found.x) - saved["weight"]
    assert written.abs().max() < 1e-6
    # and the next step goes on from there: without a gradient's direction z stays
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(optimizer.iterates(model.weight).z, found.z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in WITHOUT_AVERAGES])
def test_average_of_a_model_that_is_not_trained(name: str) -> None:
    torch.manual_seed(0)
    model = nn.ParameterList(make_params([(3,), (2, 2)]))
    optimizer, _ = make(name, "cpu", torch.float64)
    for mode in ("train", "eval"):
        getattr(optimizer, mode)()
        with pytest.raises(ValueError, match=r"not this optimizer's: 0, 1; expected"):
            optimizer.averaged_state_dict(copy.deepcopy(model))


@pytest.mark.parametrize("name", [*PLAIN, "wrapper"])
def test_groups_come_and_go(name: str) -> None:
    """Where no number is formed of all gradients: also one group at a time, as DeepSpeed steps them."""
    ends = []
    for in_turns in (False, True):
        optimizer, params = trained(name)
        groups = optimizer.param_groups
        for p in params:
            p.grad = torch.ones_like(p)
        if in_turns and name != "wrapper":
            for group in groups:
                optimizer.param_groups = [group]
                optimizer.step()
            optimizer.param_groups = groups
        else:
            optimizer.step()
        ends.append([p.detach().clone() for p in params])
        # torch's own base of the wrapper wants groups to be complete
        whole = {k: v for k, v in groups[0].items() if k != "params" and name == "wrapper"}
        del groups[0]
        groups.append({**whole, "params": make_params([(3,)]), "lr": 0.125, "weight_decay": 0.0})
        before = [p.detach().clone() for p in params[:2]]
        for p in params + groups[-1]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert_same_bits([p.detach() for p in params[:2]], before)
        assert optimizer.metrics()["k"] == 5
        optimizer.eval()
        copy.deepcopy(optimizer)
    assert_same_bits(*ends)


def test_a_group_of_one_step_size_for_all_may_go_for_good() -> None:
    optimizer, params = trained("plus")
    groups = optimizer.param_groups
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.param_groups = groups[:1]
    with pytest.raises(
        RuntimeError, match=r"1 of the optimizer's 2 groups.*DeepSpeed.*del optimizer"
    ):
        optimizer.step()
    optimizer.param_groups = groups
    optimizer.step()
    del optimizer.param_groups[1]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.metrics()["k"] == 5
    moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
    assert moved == [True, True, False, False, False]


@pytest.mark.parametrize("backend", FAST)
def test_frozen_integers_are_left_alone(backend: str) -> None:
    packed = nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
    weight = nn.Parameter(torch.ones(3))
    optimizer = ours.AdamWScheduleFree([packed, weight], lr=0.1, backend=backend)
    optimizer.train()
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimizer.step()
        optimizer.eval()
        optimizer.train()
    assert torch.equal(packed, torch.arange(6, dtype=torch.uint8))
    assert set(optimizer.state) == {weight}


class Numbers(collections.abc.Sequence):
    """As omegaconf's ListConfig: a sequence that is no list."""

    def __getitem__(self, index: Any) -> Any:
        return (0.8, 0.97)[index]

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "settings",
    [
        {"betas": [0.8, 0.97]},
        {"betas": Numbers()},
        {"betas": numpy.array([0.8, 0.97])},
        {"betas": torch.tensor([0.8, 0.97], dtype=torch.float64)},
        {"betas": (numpy.float64(0.8), torch.tensor(0.97, dtype=torch.float64))},
        {"lr": numpy.float64(0.125), "weight_decay": numpy.float32(0.25), "eps": numpy.array(1e-8)},
        {
            "lr": torch.tensor(0.125),
            "weight_decay": torch.tensor(0.25),
            "warmup_steps": numpy.int64(4),
        },
        {"lr": torch.tensor([0.125]), "r": torch.tensor(1.0)},
        {"lr": torch.tensor([[0.125]])},
    ],
)
def test_numbers_of_any_make(settings: dict[str, Any]) -> None:
    def plain(value: Any) -> Any:
        return (
            tuple(map(float, value))
            if isinstance(value, Numbers | list | tuple)
            else (
                tuple(value.tolist())
                if numpy.ndim(value) == 1 and len(value) == 2
                else float(value)
            )
        )

    ends = []
    for given in (settings, {key: plain(value) for key, value in settings.items()}):
        for cls in (ours.AdamWScheduleFree, ours.AdamCScheduleFreePlus):
            params = make_params([(3,), (4, 2)])
            optimizer = cls(params, **given)
            optimizer.train()
            for _ in range(3):
                for p in params:
                    p.grad = torch.ones_like(p)
                optimizer.step(*([lambda: 2.0] if cls is ours.AdamCScheduleFreePlus else []))
            ends.append([p.detach() for p in params])
    for a, b in zip(ends[:2], ends[2:], strict=True):
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CLASSES)
def test_only_the_step_is_not_of_the_parameters_shape(name: str) -> None:
    optimizer, params = trained(name, dtype=torch.bfloat16)
    for p in params:
        for key, value in optimizer.state.get(p, {}).items():
            assert key == "step" or value.shape == p.shape, key


def test_estimators_of_memory_get_the_state() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = nn.Linear(1000, 1000)
        for cls in (ours.AdamWScheduleFree, ours.AdamCScheduleFreePlus):
            optimizer = cls(model.parameters())
            optimizer.train()
            loss = model(torch.randn(2, 1000)).sum()
            loss.backward()
            optimizer.step(*([loss.clone] if cls is ours.AdamCScheduleFreePlus else []))
            optimizer.eval()
            optimizer.train()
            held = sum(v.nbytes for state in optimizer.state.values() for v in state.values())
            buffers = 3 if cls is ours.AdamCScheduleFreePlus else 2
            assert held == buffers * 4 * 1001 * 1000 + 2 * 8


@pytest.mark.parametrize("name", ["adamw", "plus", "radam"])
@pytest.mark.parametrize("backend", FAST)
def test_inference_mode_right_after_loading(name: str, backend: str) -> None:
    optimizer, _ = trained(name, backend, torch.bfloat16)
    saved = copy.deepcopy(optimizer.state_dict())
    other, others = make(name, backend, torch.bfloat16)
    with torch.inference_mode():
        other.load_state_dict(saved)
        other.eval()
        other.train()
        with other.averaged():
            pass
    steps(other, others, 3, 5)
    other.eval()


@pytest.mark.parametrize("name", [*PLAIN, "plus"])
def test_keys_of_others_are_carried_along(name: str) -> None:
    optimizer, params = trained(name)
    optimizer.state[params[1]]["of an offloader"] = torch.arange(3.0)
    optimizer.state[params[2]]["note"] = "mine"
    other, others = make(name, "cpu", torch.float64)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[others[1]]["of an offloader"], torch.arange(3.0))
    assert other.state[others[2]]["note"] == "mine"
    steps(other, others, 3, 4)


@pytest.mark.parametrize("name", CLASSES)
def test_keys_of_others_alone_are_no_beginning(name: str) -> None:
    """Before the first step, when there is nothing of ours beside them."""

    def make(name: str, backend: str, dtype: torch.dtype) -> Any:
        if name != "wrapper":
            return test_hands.make(name, backend, dtype)
        params = make_params([(3,), (4, 3)], dtype)  # torch's AdamW cannot load this, its SGD can
        base = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        return ours.ScheduleFreeWrapper(base, backend=backend), params

    ends = []
    for notes in (False, True):
        optimizer, params = make(name, "cpu", torch.float64)
        if notes:
            optimizer.state[params[1]]["of an offloader"] = torch.arange(3.0)
        other, others = make(name, "cpu", torch.float64)
        other.load_state_dict(optimizer.state_dict())
        if notes:
            assert list(other.state[others[1]]) == ["of an offloader"]
        other.train()
        steps(other, others, 0, 3)
        assert ("of an offloader" in other.state[others[1]]) == notes
        ends.append([p.detach() for p in others])
    assert_same_bits(*ends)


@pytest.mark.parametrize("begun", [False, True])
def test_keys_of_others_in_states_of_upstream(begun: bool) -> None:
    upstream_params, params = make_params([(3,), (4,)]), make_params([(3,), (4,)])
    theirs = schedulefree.AdamWScheduleFree(upstream_params, foreach=False)
    optimizer = ours.AdamWScheduleFree(params)
    for one, its in ((theirs, upstream_params), (optimizer, params)):
        one.train()
        if begun:
            for p in its:
                p.grad = torch.ones_like(p)
            one.step()
        one.state[its[0]]["of an offloader"] = torch.arange(3.0)
    loaded = ours.AdamWScheduleFree(make_params([(3,), (4,)]))
    loaded.load_state_dict(theirs.state_dict())
    loaded.eval()
    state = loaded.state[loaded.param_groups[0]["params"][0]]
    assert torch.equal(state["of an offloader"], torch.arange(3.0))
    assert ("displacement" in state) == begun
    # and for upstream, which has no use for them
    saved = optimizer.to_upstream_state_dict()["state"]
    assert [set(state) for state in saved.values()] == ([{"z", "exp_avg_sq"}] * 2 if begun else [])


def test_hooks_of_a_wrapper_run() -> None:
    optimizer, params = trained("wrapper")
    ran = []
    optimizer.register_state_dict_pre_hook(lambda o: ran.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, s: {key: value for key, value in s.items() if key != "mine"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: ran.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["mine"] == 1
    optimizer.load_state_dict(saved)
    assert ran == ["before saving", "loaded"]
    steps(optimizer, params, 3, 4)


@pytest.mark.parametrize("name", CLASSES)
def test_groups_that_were_appended_by_hand(name: str) -> None:
    optimizer, params = trained(name)
    new = make_params([(2, 2)], seed=5)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer.param_groups.append({**group, "params": new})
    optimizer.state_dict()
    optimizer.eval()
    optimizer.metrics()
    copy.deepcopy(optimizer)
    optimizer.train()
    before = new[0].detach().clone()
    steps(optimizer, params + new, 3, 6)
    assert not torch.equal(new[0], before)


@pytest.mark.parametrize("name", ["adamw", "plus"])
def test_a_loss_and_an_lr_of_one_element(name: str) -> None:
    for shape in ((1,), (1, 1)):
        params = make_params([(3,)])
        optimizer = ours.AdamCScheduleFreePlus(params, lr=torch.full(shape, 0.5))
        optimizer.train()
        loss = (params[0] ** 2).sum().reshape(shape)
        loss.backward()
        optimizer.step(loss=loss)
        assert optimizer.metrics()["function_value"] == loss.item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_one_group_may_ascend(name: str, backend: str) -> None:
    """As if its gradients had the other sign."""
    if backend == "triton" and name != "adamw":
        pytest.skip("slow in the interpreter")
    ends = []
    for ascends in (False, True):
        optimizer, params = make(name, backend, torch.float64)
        optimizer.param_groups[1]["maximize"] = ascends
        optimizer.train()
        for _ in range(3):
            for number, p in enumerate(params):
                sign = 1 if ascends or number < 2 else -1
                p.grad = torch.full_like(p, 0.5 * sign)
            optimizer.step()
        ends.append([p.detach() for p in params])
    assert_same_bits(*ends)
    maximize = {"params": make_params([(3,)]), "maximize": True}
    type(optimizer)([{"params": make_params([(2,)])}, maximize], lr=0.1)


@pytest.mark.parametrize("name", [*PLAIN, "plus"])
def test_a_state_dict_without_an_option(name: str) -> None:
    """An older version did not know it: it is what it is by default."""
    optimizer, params = make(name, "cpu", torch.float64)
    optimizer = type(optimizer)(params, lr=0.1)
    optimizer.train()
    steps(optimizer, params, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    options = {"inner_momentum", "skip_nonfinite", "max_grad_norm", "f_star", "maximize"}
    for group in saved["param_groups"]:
        for option in options & set(group):
            del group[option]
    other = type(optimizer)(params, lr=0.1)
    other.load_state_dict(saved)
    assert options & set(optimizer.defaults) <= set(other.param_groups[0])
    steps(other, params, 2, 3)


def test_the_meta_device_is_named() -> None:
    with pytest.raises(ValueError, match="meta device.*to_empty"):
        ours.AdamWScheduleFree(nn.Linear(2, 2, device="meta").parameters())


@pytest.mark.parametrize("backend", FAST)
def test_run_state_that_is_written_into_a_group_counts(backend: str) -> None:
    """As in upstream, where it is an entry of the group: a new beginning of the average."""
    optimizer, params = trained("plus", backend)
    optimizer.state_dict()
    for group in optimizer.param_groups:
        group.update(k=0, weight_sum=0.0, lr_max=0.0)
    steps(optimizer, params, 3, 4)
    assert optimizer.metrics()["k"] == 1
    assert optimizer.metrics()["ckp1"] == [1.0, 1.0]


def test_memory_of_another_tensor_is_not_written() -> None:
    """The native look and its twin see the same."""
    from sfplus_kernels.engine.validity import PythonWitness, new_witness

    optimizer, params = trained("adamw", "cpu", torch.float32)
    seen: list[list[bool]] = [[], []]
    tensor = optimizer.state[params[1]]["exp_avg_sq"]
    changes: list[Any] = [
        lambda: None,
        lambda: tensor.set_(tensor.clone()),
        lambda: setattr(tensor, "data", tensor.detach().t()),
        lambda: optimizer.state.pop(params[0], None),
        lambda: setattr(params[1], "grad", None),
        lambda: optimizer.param_groups[0]["params"].reverse(),
        lambda: optimizer.state[params[1]].pop("exp_avg_sq"),
        lambda: params[0].grad.untyped_storage().resize_(4),
    ]
    for p in params:
        p.grad = torch.ones_like(p)
    for change in changes:
        witnesses = (new_witness(), PythonWitness())
        for witness in witnesses:
            assert witness.note(optimizer.param_groups, optimizer.state, True)
        change()
        for results, witness in zip(seen, witnesses, strict=True):
            results.append(witness.look(optimizer.param_groups, optimizer.state, True) is None)
    assert seen[0] == seen[1] == [False, *[True] * 7]
    assert type(new_witness()) is not PythonWitness


def test_a_tensor_reader_without_torchs_c_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch, another platform: it asks the methods, and what it sees is the same."""
    from sfplus_kernels.backends import native
    from sfplus_kernels.backends.tensor_reader import PLAIN, tensor_reader
    from sfplus_kernels.engine import validity

    fast, slow = tensor_reader(), native._C.TensorReader(PLAIN, ())
    assert fast is not None
    assert (fast.direct, slow.direct) == (True, False)
    tensors = [torch.ones(3), torch.ones(3, 2).t()[1:], torch.ones(()), torch.ones(0, 2)]
    strides = [t.stride() for t in tensors]
    for reader in (fast, slow):
        found = reader.addresses(tensors, strides)
        assert torch.frombuffer(found, dtype=torch.int64).tolist() == [
            t.data_ptr() for t in tensors
        ]
        assert reader.addresses(tensors, [*strides[:1], (2, 1), *strides[2:]]) is None
        assert reader.addresses([torch.ones(2).to_sparse()], [(1,)]) is None
    monkeypatch.setattr(validity, "tensor_reader", lambda: slow)
    test_memory_of_another_tensor_is_not_written()
