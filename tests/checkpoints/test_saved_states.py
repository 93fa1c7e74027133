"""State dicts that earlier versions saved: they load, and the run goes on as it did then."""

from pathlib import Path
from typing import Any

import pytest
import saved_states
import torch
from saved_states import AFTER, BEFORE, CLASSES, make_optimizer, make_params
from support import device_of

FILES = sorted(Path(__file__).with_name("saved_states").rglob("*.pt"))


def test_every_class_was_saved_with_and_without_a_master_param() -> None:
    names = {path.stem for path in FILES}
    assert {f"{name}-{dtype}" for name in CLASSES for dtype in ("float32", "bfloat16")} <= names
    assert {"plus-float16", "adamw-float16"} <= names


def load(name: str, saved: dict[str, Any], backend: str) -> tuple[Any, list]:
    """An optimizer and parameters that are as they were saved."""
    params = make_params(saved["params"][0].dtype, device_of(backend))
    optimizer = make_optimizer(name, params, backend)
    with torch.no_grad():
        for param, value in zip(params, saved["params"], strict=True):
            param.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    return optimizer, params


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_goes_on(backend: str, path: Path) -> None:
    """x, y and z are those that the version came to that saved the run: to the rounding of float32."""
    name = path.stem.rpartition("-")[0]
    for saved in torch.load(path, weights_only=True).values():
        optimizer, params = load(name, saved, backend)
        start = saved_states.iterates(optimizer, params)
        if saved_states.has_modes(name):
            optimizer.train()
        saved_states.drive(name, optimizer, params, range(BEFORE, BEFORE + AFTER))
        found = saved_states.iterates(optimizer, params)
        for before, mine, expected in zip(start, found, saved["iterates"], strict=True):
            # standing still proves nothing
            assert float((mine[-1] - before[-1]).abs().max()) > 1e-2
            for value, other in zip(mine, expected, strict=True):
                torch.testing.assert_close(value, other, rtol=2e-6, atol=2e-6)
