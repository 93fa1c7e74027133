"""The test module that the schedulefree package installs, with its names bound to our classes."""

from collections import defaultdict
from typing import Any

import pytest
import schedulefree.test_schedulefree as upstream
import torch
from torch import Tensor

import sfplus_kernels
from sfplus_kernels import reference


class StateWithZ(dict):
    """State of one parameter that also answers for ``z``, which it does not hold."""

    def __init__(self, optimizer: Any, param: Tensor, values: dict) -> None:
        super().__init__(values)
        self.optimizer, self.param = optimizer, param

    def __missing__(self, key: str) -> Tensor:
        if key != "z":
            raise KeyError(key)
        z: Tensor = self.optimizer.iterates(self.param).z
        return z


class States(defaultdict):
    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.optimizer = optimizer

    def __missing__(self, param: Tensor) -> StateWithZ:
        self[param] = {}
        found: StateWithZ = self[param]
        return found

    def __setitem__(self, param: Tensor, values: dict) -> None:
        super().__setitem__(param, StateWithZ(self.optimizer, param, values))


def with_z(cls: Any) -> Any:
    class WithZ(cls):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.state = States(self)

    return WithZ


OURS = {
    **{
        name: with_z(getattr(sfplus_kernels, name))
        for kind in ("SGD", "AdamW", "RAdam")
        for name in (f"{kind}ScheduleFree", f"{kind}ScheduleFreeClosure")
    },
    "ScheduleFreeWrapper": sfplus_kernels.ScheduleFreeWrapper,
    **{
        name: getattr(reference, name)
        for name in (
            "SGDScheduleFreeReference",
            "AdamWScheduleFreeReference",
            "ScheduleFreeWrapperReference",
        )
    },
}
TESTS = sorted(name for name in vars(upstream) if name.startswith("test_"))


def test_every_class_that_it_uses_is_ours() -> None:
    classes = {
        name
        for name, value in vars(upstream).items()
        if isinstance(value, type) and value.__module__.startswith("schedulefree")
    }
    assert classes == set(OURS)
    assert len(TESTS) == 8


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_passes(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def counted(key: str, cls: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            used.add(key)
            return cls(*args, **kwargs)

        return make

    for key, cls in OURS.items():
        monkeypatch.setattr(upstream, key, counted(key, cls))
    # on the CPU, where these backends are
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setenv("SFPLUS_BACKEND", backend)
    torch.manual_seed(1)
    getattr(upstream, name)()
    assert used or name == "test_equiv"  # which has no optimizer in it
