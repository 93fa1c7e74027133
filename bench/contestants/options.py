"""Contestants with an option that costs time: rows of a fixed norm, and the drift monitor."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from bench.contestants.contestant import Contestant, Step

ROWS, DRIFT = "{name}, row_norm", "{name}, drift monitor"


def with_options(contestant: Contestant) -> list[Contestant]:
    """One of ours, without state in fewer bits, with each option."""
    return [_with_rows(contestant), _with_drift(contestant)]


def _with_rows(contestant: Contestant) -> Contestant:
    """The rows of all matrices are brought to a norm; vectors have a group without."""

    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer, step = contestant.make(params)
        (group,) = optimizer.param_groups
        vectors = [p for p in params if p.ndim < 2]
        group["params"] = [p for p in params if p.ndim >= 2]
        group["row_norm"] = 1.0
        if vectors:
            optimizer.add_param_group({"params": vectors})
        return optimizer, step

    name = ROWS.format(name=contestant.name)
    # the oracle has no such rows; tests of the package compare with the reference that has
    return replace(contestant, name=name, make=make, oracle=None, for_matrices=True)


def _with_drift(contestant: Contestant) -> Contestant:
    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer, step = contestant.make(params)
        optimizer.monitor_drift("group")  # type: ignore[attr-defined]
        return optimizer, step

    return replace(contestant, name=DRIFT.format(name=contestant.name), make=make)
