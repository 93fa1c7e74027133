"""The quick look whether tensors are as they were: at the words of memory in which torch keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from truth.trained import trained

from sfplus_kernels import AdamWScheduleFree
from sfplus_kernels.backends import native
from sfplus_kernels.backends.tensor_reader import PLAIN, tensor_reader

SIX = (1, 2, 1, 3, 1, 2)


def readers() -> dict[str, Any]:
    """Each of the three ways to look, by what is tried at the beginning."""
    # no tensor of so many dimensions has its sizes within torch's own object
    return {
        "words": tensor_reader(),
        "interface": native._C.TensorReader(PLAIN, (torch.zeros(SIX), torch.zeros(SIX).bfloat16())),
        "methods": native._C.TensorReader(PLAIN, ()),
    }


def test_which_way_is_taken() -> None:
    found = {name: (r.direct, r.knows_words) for name, r in readers().items()}
    assert found == {
        "words": (True, True),
        "interface": (True, False),
        "methods": (False, False),
    }


def at_rest(shape: tuple[int, ...] = (2, 3)) -> tuple[list[dict], dict[Tensor, dict]]:
    params = [nn.Parameter(torch.zeros(shape)) for _ in range(3)]
    for p in params:
        p.grad = torch.ones(shape)
    state = {p: {"exp_avg": torch.zeros(shape)} for p in params}
    return [{"params": params}], state


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> None:
    """The same memory, taken for other numbers."""
    tensor.data = tensor.detach().view(dtype)


CHANGES: dict[str, tuple[bool, Callable[[Tensor], object]]] = {
    "nothing": (False, lambda t: None),
    "values": (False, lambda t: t.fill_(3)),
    "memory": (True, lambda t: setattr(t, "data", t.clone())),
    "storage": (True, lambda t: t.untyped_storage().resize_(4096)),
    "strides": (True, lambda t: t.as_strided_((2, 3), (1, 2))),
    "shape": (True, lambda t: t.resize_(3, 2)),
    "offset": (True, lambda t: t.set_(t.new_zeros(9)[3:].view(2, 3))),
    "dtype": (True, lambda t: as_dtype(t, torch.int32)),
    "sign put off": (True, lambda t: setattr(t, "data", torch._neg_view(t.detach()))),
}


@pytest.mark.parametrize("of", ["state", "gradient"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", ["words", "interface", "methods"])
def test_what_is_seen(way: str, change: str, of: str) -> None:
    groups, state = at_rest()
    reader = readers()[way]
    witness = native._C.Witness(reader, ("exp_avg",))
    assert witness.note(groups, state, True)
    assert witness.look(groups, state, True) == ([p.grad for p in groups[0]["params"]], True)
    assert witness.look(groups, state, True)[1] is False
    param = groups[0]["params"][1]
    other, act = CHANGES[change]
    if change == "sign put off" and way != "words":
        other = False  # they do not look for it
    with torch.no_grad():
        act(state[param]["exp_avg"] if of == "state" else param.grad)
    seen = witness.look(groups, state, True)
    if of == "state":
        assert (seen is None) is other
    elif change in ("shape", "dtype"):
        assert seen is None
    else:
        assert seen is not None
        assert seen[1] is other


@pytest.mark.parametrize("way", ["words", "interface", "methods"])
def test_another_gradient_of_the_same_kind_is_only_elsewhere(way: str) -> None:
    groups, state = at_rest()
    witness = native._C.Witness(readers()[way], ("exp_avg",))
    witness.note(groups, state, True)
    witness.look(groups, state, True)
    param = groups[0]["params"][2]
    # made in another way: torch's own marks differ
    param.grad = torch.ones(3, 2).t()
    assert witness.look(groups, state, True)[1] is True
    assert witness.look(groups, state, True)[1] is False
    param.grad = torch.ones(7)[1:].view(2, 3)
    assert witness.look(groups, state, True)[1] is True
    param.grad = None
    assert witness.look(groups, state, True) is None
    param.grad = torch.ones(2, 3)
    assert witness.look(groups, state, True) is not None
    param.grad.untyped_storage().resize_(8)  # no room for its elements
    assert witness.look(groups, state, True) is None


def test_many_dimensions_go_the_other_way() -> None:
    groups, state = at_rest(SIX)
    witness = native._C.Witness(tensor_reader(), ("exp_avg",))
    assert witness.note(groups, state, True)
    assert witness.look(groups, state, True) is not None
    tensor = state[groups[0]["params"][0]]["exp_avg"]
    tensor.data = tensor.clone()
    assert witness.look(groups, state, True) is None


def test_states_in_another_order_than_the_parameters() -> None:
    groups, state = at_rest()
    state = dict(reversed(state.items()))
    witness = native._C.Witness(tensor_reader(), ("exp_avg",))
    assert witness.note(groups, state, True)
    assert witness.look(groups, state, True) is not None
    for param in groups[0]["params"]:
        before = state[param]["exp_avg"]
        state[param]["exp_avg"] = before.clone()
        assert witness.look(groups, state, True) is None
        state[param]["exp_avg"] = before
        assert witness.look(groups, state, True) is not None


def test_memory_that_torch_shares_until_it_is_written() -> None:
    """A lazy clone has the same address until one of the two is written: it is another state then."""
    groups, state = at_rest()
    witness = native._C.Witness(tensor_reader(), ("exp_avg",))
    assert witness.note(groups, state, True)
    tensor = state[groups[0]["params"][0]]["exp_avg"]
    twin = torch._lazy_clone(tensor)
    assert witness.look(groups, state, True) is None
    assert witness.note(groups, state, True)  # gives the tensor memory of its own
    assert tensor.data_ptr() != twin.data_ptr()


@pytest.mark.parametrize("way", ["words", "interface", "methods"])
def test_a_gradient_without_storage(way: str) -> None:
    """A sparse one has no memory of its own that could be looked at."""
    groups, state = at_rest()
    witness = native._C.Witness(readers()[way], ("exp_avg",))
    assert witness.note(groups, state, True)
    assert witness.look(groups, state, True) is not None
    groups[0]["params"][1].grad = torch.ones(2, 3).to_sparse()
    assert witness.look(groups, state, True) is None


def test_a_sparse_gradient_after_dense_ones_is_refused() -> None:
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = AdamWScheduleFree([param], lr=0.1)
    optimizer.train()
    for _ in range(3):
        param.grad = torch.ones(2, 3)
        optimizer.step()
    before = param.detach().clone()
    param.grad = torch.ones(2, 3).to_sparse()
    with pytest.raises(TypeError, match="is sparse"):
        optimizer.step()
    assert torch.equal(param, before)
    assert optimizer.state[param]["step"] == 3


def test_versions_are_counted_as_torch_does() -> None:
    reader = tensor_reader()
    assert reader is not None
    assert reader.knows_versions
    param = nn.Parameter(torch.zeros(3))
    before = param._version
    saved = (param * param).sum()
    assert reader.count_versions([param, param.detach()])
    assert param._version == before + 2  # a view has the same count
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
    with torch.inference_mode():
        uncounted = torch.zeros(3)
    assert not reader.count_versions([param, uncounted])
    assert param._version == before + 2
    assert not readers()["methods"].count_versions([param])


def test_negated_gradients_have_no_plain_address() -> None:
    reader = tensor_reader()
    assert reader is not None
    plain, negated = torch.ones(3), torch._neg_view(torch.ones(3))
    strides = [(1,), (1,)]
    assert reader.addresses([plain, torch.ones(3)], strides) is not None
    assert reader.addresses([plain, negated], strides) is None


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
