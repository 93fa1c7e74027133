"""docs/memory.md against the buffers that the optimizers really keep."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import ROOT

import sfplus_kernels

SHAPE = (128, 32)  # the least that is kept in 8 bits
TABLE = {
    name: [float(column) for column in columns.split("|") if column.strip()]
    for name, columns in re.findall(
        r"^\| `([^|]+?) \|((?: [\d.]* ?\|){6})$", (ROOT / "docs" / "memory.md").read_text(), re.M
    )
}


def make(name: str, state_format: str) -> Callable[[list], Any]:
    if name.startswith("torch"):
        return torch.optim.AdamW
    options: dict[str, Any] = {"inner_momentum": 0.9} if "inner_momentum" in name else {}
    options |= {"momentum": 0.9} if name.startswith("SGD` with") else {}
    options["state_format"] = state_format
    cls = getattr(sfplus_kernels, name.partition("`")[0])
    return lambda params: cls(params, **options)


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name in TABLE for column in range(len(TABLE[name]))]
)
def test_state(name: str, column: int) -> None:
    p = torch.nn.Parameter(torch.ones(SHAPE, dtype=(torch.float32, torch.bfloat16)[column % 2]))
    p.grad = torch.ones_like(p)
    optimizer = make(name, ("float32", "16bit", "8bit")[column // 2])([p])
    if isinstance(optimizer, sfplus_kernels.AdamCScheduleFreePlus):
        optimizer.train()
        optimizer.step(loss=1.0)
    else:
        getattr(optimizer, "train", lambda: None)()
        optimizer.step()
    kept = sum(v.nbytes for v in optimizer.state[p].values() if v.dim() > 0)
    assert round(kept / p.numel(), 2) == TABLE[name][column]


def test_the_table_has_the_classes() -> None:
    assert len(TABLE) == 9
