"""The look that says soonest that nothing is another object than at the last one."""

from __future__ import annotations

import collections
import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from truth.test_tensor_words import at_rest, readers

from sfplus_kernels.backends import native
from sfplus_kernels.backends.tensor_reader import PLAIN, tensor_reader


def looked_at_quickly(state_keys: tuple[str, ...]) -> tuple[list[dict], dict[Tensor, dict], Any]:
    """After two looks: the third is the quick one."""
    groups, _ = at_rest()
    state = {p: {key: torch.zeros(2, 3) for key in state_keys} for p in groups[0]["params"]}
    witness = native._C.Witness(tensor_reader(), ("exp_avg", "exp_avg_sq"))
    assert witness.note(groups, state, True)
    for moved in (True, False):
        assert witness.look(groups, state, True) == ([p.grad for p in groups[0]["params"]], moved)
    return groups, state, witness


def exchange_names(own: dict[str, Tensor]) -> None:
    """The same tensors in the same order, each under the other's name."""
    one, other = own["exp_avg"], own["exp_avg_sq"]
    own.clear()
    own.update(exp_avg_sq=one, exp_avg=other)


HANDS: dict[str, tuple[bool, Callable[[list[dict], dict[Tensor, dict]], object]]] = {
    "another's key": (False, lambda g, s: s[g[0]["params"][1]].update(copy=3)),
    "another's key is gone": (False, lambda g, s: s[g[0]["params"][1]].pop("theirs")),
    "another tensor": (
        True,
        lambda g, s: s[g[0]["params"][1]].update(exp_avg=torch.zeros(2, 3)),
    ),
    "names exchanged": (True, lambda g, s: exchange_names(s[g[0]["params"][1]])),
    "one is gone": (True, lambda g, s: s[g[0]["params"][1]].pop("exp_avg_sq")),
    "no tensor": (True, lambda g, s: s[g[0]["params"][1]].update(exp_avg=3)),
    "another dict": (False, lambda g, s: s.update({p: dict(o) for p, o in s.items()})),
    "a state more": (True, lambda g, s: s.update({torch.zeros(1): {}})),
    "a state less": (True, lambda g, s: s.pop(g[0]["params"][2])),
    "parameters exchanged": (True, lambda g, s: g[0]["params"].reverse()),
    "a parameter more": (True, lambda g, s: g[0]["params"].append(nn.Parameter(torch.zeros(1)))),
    "another list": (False, lambda g, s: g[0].update(params=list(g[0]["params"]))),
    "a group more": (True, lambda g, s: g.append({"params": []})),
    "no parameters": (True, lambda g, s: g[0].pop("params")),
    "swapped": (
        False,  # but for their gradients, which are exchanged too, the two are alike
        lambda g, s: torch.utils.swap_tensors(*(o["exp_avg_sq"] for o in list(s.values())[:1] * 2)),
    ),
}


@pytest.mark.parametrize("hand", HANDS)
def test_hands_after_a_quick_look(hand: str) -> None:
    groups, state, witness = looked_at_quickly(("exp_avg", "theirs", "exp_avg_sq"))
    other, act = HANDS[hand]
    act(groups, state)
    assert (witness.look(groups, state, True) is None) is other
    if not other:
        assert witness.look(groups, state, True)[1] is False


def test_tensors_swapped_after_a_quick_look() -> None:
    groups, state, witness = looked_at_quickly(("exp_avg", "exp_avg_sq"))
    torch.utils.swap_tensors(*state[groups[0]["params"][1]].values())
    assert witness.look(groups, state, True) is None


def test_a_name_in_another_string() -> None:
    groups, state, witness = looked_at_quickly(("exp_avg", "exp_avg_sq"))
    own = state[groups[0]["params"][0]]
    own["".join(["exp", "_avg_sq"])] = own.pop("exp_avg_sq")
    for _ in range(3):
        assert witness.look(groups, state, True) is not None
    own["exp_avg_sq"] = own["exp_avg_sq"].clone()
    assert witness.look(groups, state, True) is None


def test_a_look_from_closer_knows_what_quick_ones_saw_of_gradients() -> None:
    """A gradient goes away and comes back: whoever looks second must not think that it never moved."""
    groups, state, witness = looked_at_quickly(("exp_avg",))
    param = groups[0]["params"][0]
    first, second = param.grad, torch.ones(2, 3)
    param.grad = second
    assert witness.look(groups, state, True)[1] is True
    param.grad = first
    state[param] = dict(state[param])  # the quick look says nothing
    assert witness.look(groups, state, True)[1] is True
    assert witness.look(groups, state, True)[1] is False


def test_gradients_that_look_different_each_time_are_seen_all_the_same() -> None:
    groups, state, witness = looked_at_quickly(("exp_avg",))
    for step in range(400):
        for p in groups[0]["params"]:
            p.grad = torch.ones(6 + step)[step:].view(2, 3)
        seen = witness.look(groups, state, True)
        assert seen == ([p.grad for p in groups[0]["params"]], True)


DICT_CHANGES: dict[str, tuple[bool, Callable[[dict], object]]] = {
    "replaced": (True, lambda d: d.update(exp_avg=d["exp_avg"].clone())),
    "replaced, and another beside": (True, lambda d: d.update(b=1, exp_avg=d["exp_avg"].clone())),
    "merged": (True, lambda d: d.__ior__({"exp_avg": d["exp_avg"].clone()})),
    "cleared and filled": (True, lambda d: (d.clear(), d.update(exp_avg=torch.zeros(2, 3)))),
    "taken out": (True, lambda d: d.pop("exp_avg")),
    "taken out as the last": (True, lambda d: d.popitem()),
    "taken out and put back": (False, lambda d: d.update(exp_avg=d.pop("exp_avg"))),
    "read": (False, lambda d: [d.get("exp_avg"), *d.items(), d.setdefault("exp_avg"), d.copy()]),
    "set to what it was": (False, lambda d: d.update(d)),
    "something beside": (False, lambda d: d.setdefault("of others", 3)),
}


@pytest.mark.parametrize("change", DICT_CHANGES)
@pytest.mark.parametrize("kind", [dict, collections.defaultdict, collections.OrderedDict])
def test_every_way_to_change_a_dict(kind: type[dict], change: str) -> None:
    """Python numbers the contents of a dict: what was not modified is not gone through."""
    groups, state, witness = looked_at_quickly(("exp_avg",))
    assert witness.knows_dicts is (sys.version_info < (3, 14))
    param = groups[0]["params"][1]
    own = kind()
    own.update(state[param])
    state[param] = own
    for _ in range(3):
        assert witness.look(groups, state, True) is not None
    other, act = DICT_CHANGES[change]
    for _ in range(3):
        act(state[param])
        for _ in range(2):
            assert (witness.look(groups, state, True) is None) is other
        if other:
            break


def test_a_dict_that_takes_the_place_of_another() -> None:
    groups, state, witness = looked_at_quickly(("exp_avg",))
    param = groups[0]["params"][1]
    for _ in range(50):
        state[param] = {"exp_avg": state[param]["exp_avg"]}
        assert witness.look(groups, state, True) is not None
        held = state[param]
        state[param] = {"exp_avg": torch.zeros(2, 3)}
        assert witness.look(groups, state, True) is None
        state[param] = held


@pytest.mark.parametrize("way", ["words", "interface", "methods"])
def test_gradients_are_those_of_the_attribute(way: str) -> None:
    reader = readers()[way]
    assert reader.knows_gradients is (way == "words")
    param = nn.Parameter(torch.ones(3))
    assert reader.grad(param) is None
    assert reader.grad(torch.ones(3)) is None
    for _ in range(3):
        (2 * param).sum().backward()  # made where there is no Python
        first = reader.grad(param)
        assert first is param.grad
        assert torch.equal(first, torch.full((3,), 2.0))
        address = first.data_ptr()
        del first
        gc.collect()  # nobody in Python holds it
        assert reader.grad(param).data_ptr() == address
        param.grad = None
        assert reader.grad(param) is None
    param.grad = torch.ones(3)
    mine = param.grad
    assert reader.grad(param) is mine
    param.grad = mine.clone()
    assert reader.grad(param) is param.grad is not mine
    held = reader.grad(param)
    param.grad = None
    assert torch.equal(held, torch.ones(3))  # it holds the memory, too
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    assert reader.grad(frozen) is None
    frozen.grad = mine
    assert reader.grad(frozen) is mine
    other = nn.Parameter(torch.zeros(3))
    torch.utils.swap_tensors(frozen, other)
    assert reader.grad(frozen) is None
    assert reader.grad(other) is mine


def test_gradients_that_tell_nothing_are_not_gone_by() -> None:
    """With too few to be sure, or where something else stands there, torch is asked."""
    with_one = [nn.Parameter(torch.zeros(n)) for n in (1, 2)]
    for p in with_one:
        p.grad = torch.zeros_like(p)
    without = [nn.Parameter(torch.zeros(n)) for n in (3, 4)]
    stranger = torch.zeros(1)
    probes = (torch.zeros(3, 4), torch.zeros(3, 4).t()[1:, 1:], torch.zeros(5).bfloat16())

    def knows(*graded: Tensor) -> bool:
        reader = native._C.TensorReader(PLAIN, probes, (), graded)
        assert reader.knows_words
        assert reader.grad(with_one[0]) is with_one[0].grad
        return bool(reader.knows_gradients)

    assert knows(*with_one, *without, stranger)
    assert not knows(*with_one, *without)
    assert not knows(with_one[0], *without, stranger)
    assert not knows(*with_one, without[0], stranger)
    assert not knows(*with_one, stranger)
    assert not knows()


def test_a_gradient_of_another_type_is_left_to_a_closer_look() -> None:
    class Other(Tensor):
        pass

    groups, state, witness = looked_at_quickly(("exp_avg",))
    param = groups[0]["params"][1]
    param.grad = torch.ones(2, 3).as_subclass(Other)
    assert witness.look(groups, state, True) is None
    param.grad = torch.ones(2, 3)
    assert witness.look(groups, state, True) is not None
