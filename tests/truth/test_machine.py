"""Hands laid on an optimizer at random between steps, against a model that keeps only the containers."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support import device_of, make_params
from torch import Tensor
from truth.hands import HANDS, LAYOUTS
from truth.plain_model import PlainModel
from truth.test_hands import dense

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

SHAPES = [(3,), (4, 3), (0,), (2, 5), ()]

# left to test_hands.py: here they would be noise, or are of one side only
NOT_DRAWN = {
    "a_moment_of_another_dtype",
    "groups_are_copied",
    "momentum_begins_anew",
    "momentum_rests",
    "parameters_are_swapped",
}
DRAWN = sorted(set(HANDS) - NOT_DRAWN)

ADAMW = {"lr": 0.0625, "betas": (0.8, 0.97), "eps": 1e-8, "weight_decay": 0.125}
PLUS = {
    "lr": 0.0625,
    "betas": (0.8, 0.97),
    "eps": 1e-8,
    "weight_decay": 0.125,
    "sf_beta1": 0.8,
    "sf_beta1_max": 0.95,
    "sf_beta1_anneal_steps": 12,
}


class Machine(RuleBasedStateMachine):
    """The real one and the model, with the same done to both."""

    backends = tuple(os.environ.get("SFPLUS_MACHINE", "cpu eager").split())

    @initialize(polyak=st.booleans(), number=st.integers(0, 7))
    def make(self, polyak: bool, number: int) -> None:
        backend = self.backends[number % len(self.backends)]
        self.polyak, self.k = polyak, 0
        self.params, self.twins = make_params(SHAPES), make_params(SHAPES)
        halves = [
            [{"params": list(ps[:2])}, {"params": list(ps[2:]), "lr": 0.03125}]
            for ps in (self.params, self.twins)
        ]
        self.optimizer: Any
        if polyak:
            self.optimizer = AdamCScheduleFreePlus(halves[0], **PLUS, backend=backend)
            self.model = PlainModel(halves[1], polyak=True, **PLUS)
        else:
            self.optimizer = AdamWScheduleFree(
                halves[0], **ADAMW, inner_momentum=0.5, backend=backend
            )
            self.model = PlainModel(halves[1], polyak=False, **ADAMW, inner_momentum=0.5)
        self.saved: tuple[Any, Any, list[Tensor], bool] | None = None

    @rule(
        missing=st.sets(st.integers(0, 8), max_size=4),
        steps=st.integers(1, 3),
        layout=st.sampled_from([None, *LAYOUTS]),
    )
    def steps(self, missing: set[int], steps: int, layout: str | None) -> None:
        self.optimizer.train()
        self.model.train()
        for _ in range(steps):
            self.k += 1
            generator = torch.Generator().manual_seed(self.k)
            for number, (p, twin) in enumerate(zip(self.params, self.twins, strict=True)):
                grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                absent = number in missing or not p.requires_grad
                grad = grad if layout is None else LAYOUTS[layout](grad)
                p.grad, twin.grad = (None, None) if absent else (grad, dense(grad))
            self.optimizer.step(*([lambda: 1.5] if self.polyak else []))
            self.model.step(1.5)

    @rule(what=st.sampled_from(DRAWN))
    def lay_hands_on_it(self, what: str) -> None:
        if what == "all_state_is_cleared" and not self.model.train_mode:
            return
        HANDS[what](self.optimizer, self.params)
        HANDS[what](self.model, self.twins)

    @rule()
    def thaw(self) -> None:
        for p in (*self.params, *self.twins):
            p.requires_grad_(True)

    @rule()
    def change_modes(self) -> None:
        for one in (self.optimizer, self.model):
            one.eval()

    @rule()
    def add_a_group(self) -> None:
        for one, params in ((self.optimizer, self.params), (self.model, self.twins)):
            new = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
            params.append(new)
            if one is self.optimizer:
                one.add_param_group({"params": [new], "lr": 0.25})
            else:
                one.param_groups.append({"params": [new], "lr": 0.25})

    @rule(way=st.sampled_from(["deepcopy", "pickle"]))
    def go_on_with_a_copy(self, way: str) -> None:
        self.forget_strangers()
        both = (self.optimizer, self.params)
        self.optimizer, self.params = (
            copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
        )

    @rule()
    def save(self) -> None:
        self.forget_strangers()
        values = [p.detach().clone() for p in self.params]
        saved = copy.deepcopy(self.optimizer.state_dict())
        self.saved = saved, self.model.saved(), values, self.model.train_mode

    @rule()
    def load(self) -> None:
        if self.saved is None:
            return
        saved, of_model, values, mode = self.saved
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        shapes = [value.shape for value in values]
        if sizes != [len(group["params"]) for group in self.optimizer.param_groups] or shapes != [
            p.shape for p in self.params
        ]:
            return
        self.optimizer.load_state_dict(saved)
        self.model.load(of_model)
        self.model.train_mode = mode
        with torch.no_grad():
            for p, twin, value in zip(self.params, self.twins, values, strict=True):
                p.copy_(value)
                twin.copy_(value)

    def forget_strangers(self) -> None:
        """torch cannot save the state of a parameter that is in no group."""
        for one, params in ((self.optimizer, self.params), (self.model, self.twins)):
            own = set(map(id, params))
            for p in [p for p in one.state if id(p) not in own]:
                del one.state[p]

    @invariant()
    def both_are_the_same(self) -> None:
        if not hasattr(self, "optimizer"):
            return
        for p, twin in zip(self.params, self.twins, strict=True):
            torch.testing.assert_close(p.detach(), twin.detach(), rtol=1e-9, atol=1e-11)
            state, expected = self.optimizer.state.get(p, {}), self.model.state.get(twin, {})
            assert state.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(
                    state[key].detach(),
                    value,
                    rtol=1e-8,
                    atol=1e-11,
                    msg=lambda m, key=key: f"{key}: {m}",
                )


without_gpu = pytest.mark.skipif(
    device_of("triton").type != "cpu", reason="with a GPU there is no interpreter of Triton's"
)


class InTheInterpreter(Machine):
    """Of Triton, which is slow."""

    backends = ("triton",)


def run(examples: int, derandomize: bool, machine: type[Machine] = Machine) -> None:
    checks = list(HealthCheck)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            derandomize=derandomize,
            deadline=None,
            suppress_health_check=checks,
        ),
    )


def test_fifty_sequences() -> None:
    run(50, derandomize=True)  # the same each time: what is new is found by the slow one


@without_gpu
def test_three_sequences_in_the_interpreter() -> None:
    run(3, derandomize=True, machine=InTheInterpreter)


@pytest.mark.by_hand  # other sequences each time
@without_gpu
def test_a_hundred_sequences_in_the_interpreter() -> None:
    run(100, derandomize=False, machine=InTheInterpreter)


@pytest.mark.by_hand  # other sequences each time
def test_a_thousand_sequences() -> None:
    run(1000, derandomize=False)
