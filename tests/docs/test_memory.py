"""docs/memory.md against the buffers that the optimizers really keep."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import ROOT

import sfplus_kernels

N = 1000
TABLE = {
    name: (int(single), int(half))
    for name, single, half in re.findall(
        r"^\| `([^|]+?) \| (\d+) \| (\d+) \|$", (ROOT / "docs" / "memory.md").read_text(), re.M
    )
}


def make(name: str) -> Callable[[list], Any]:
    if name.startswith("torch"):
        return torch.optim.AdamW
    options = {"inner_momentum": 0.9} if "inner_momentum" in name else {}
    cls = getattr(sfplus_kernels, name.partition("`")[0])
    return lambda params: cls(params, **options)


@pytest.mark.parametrize("column", [0, 1], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", TABLE)
def test_state(name: str, column: int) -> None:
    p = torch.nn.Parameter(torch.ones(N, dtype=(torch.float32, torch.bfloat16)[column]))
    p.grad = torch.ones_like(p)
    optimizer = make(name)([p])
    if isinstance(optimizer, sfplus_kernels.AdamCScheduleFreePlus):
        optimizer.train()
        optimizer.step(loss=1.0)
    else:
        getattr(optimizer, "train", lambda: None)()
        optimizer.step()
    kept = sum(v.nbytes for v in optimizer.state[p].values() if v.shape == p.shape)
    assert kept / N == TABLE[name][column]


def test_the_table_has_the_classes() -> None:
    assert len(TABLE) == 7
