"""Runs that were saved half-way, and how to go on with them.

``python tests/checkpoints/saved_states.py FOLDER`` writes a file for each class and dtype of the parameters.
Those in tests/checkpoints/saved_states were written by the package at commit 4388da7, those of the classes
without averages, in a folder in it, when SGD had got its dampening. None is to be written again: where a
format changes, files of the new one go into a folder of their own.

A file has, for each mode, ``params`` and ``optimizer`` (the state dict) after ``BEFORE`` steps, and
``iterates``, which are x, y and z of each parameter ``AFTER`` steps later, or the weight where they are one.
"""

import argparse
import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sfplus_kernels

BEFORE, AFTER = 5, 4
SHAPES = [(3, 5), (7,)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODES = ("train", "eval")

GIVEN_LR = {"lr": 0.05, "weight_decay": 0.1, "r": 1.0, "weight_lr_power": 1.0}
ADAM = {**GIVEN_LR, "betas": (0.8, 0.97)}
SGD = {**GIVEN_LR, "momentum": 0.8, "warmup_steps": 7}
PLUS = {
    "lr": 0.5,
    "sf_beta1": 0.8,
    "weight_decay": 3.0,
    "r": 1.0,
    "polyak_beta": 0.7,
    "c_warmup": 3,
    "sf_beta1_anneal_steps": 20,
    "warmup_steps": 7,
}
PLAIN_ADAM = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.97)}
PLAIN_SGD = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.8, "dampening": 0.3}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "plus": ("AdamCScheduleFreePlus", PLUS),
    "adamw": ("AdamWScheduleFree", {**ADAM, "warmup_steps": 7}),
    "adamw-inner-momentum": ("AdamWScheduleFree", {**ADAM, "inner_momentum": 0.7}),
    "paper": ("AdamWScheduleFreePaper", {**ADAM, "warmup_steps": 7}),
    "radam": ("RAdamScheduleFree", {**ADAM, "silent_sgd_phase": False}),
    "sgd": ("SGDScheduleFree", SGD),
    "adamw-closure": ("AdamWScheduleFreeClosure", {**ADAM, "warmup_steps": 7}),
    "radam-closure": ("RAdamScheduleFreeClosure", {**ADAM, "silent_sgd_phase": False}),
    "sgd-closure": ("SGDScheduleFreeClosure", SGD),
    "wrapped-adamw": ("ScheduleFreeWrapper", {"momentum": 0.8, "weight_decay_at_y": 0.1}),
    "wrapped-sgd": ("ScheduleFreeWrapper", {"momentum": 0.8, "r": 1.0}),
    "plain-adamw": ("AdamW", PLAIN_ADAM),
    "plain-adamw-16bit": ("AdamW", {**PLAIN_ADAM, "state_format": "16bit", "rounding_seed": 3}),
    "plain-adamc": ("AdamC", PLAIN_ADAM),
    "plain-sgd": ("SGD", PLAIN_SGD),
    "plain-sgd-16bit": ("SGD", {**PLAIN_SGD, "state_format": "16bit"}),
}
BASES: dict[str, Any] = {
    "wrapped-adamw": lambda params: torch.optim.AdamW(params, lr=0.05, betas=(0.7, 0.97)),
    "wrapped-sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.5),
}


def make_params(dtype: torch.dtype, device: torch.device | str = "cpu") -> list[nn.Parameter]:
    values = [torch.linspace(-1, 1, math.prod(shape)).reshape(shape) for shape in SHAPES]
    return [nn.Parameter(value.to(device, dtype)) for value in values]


def make_optimizer(name: str, params: list[nn.Parameter], backend: str) -> Any:
    """Two groups that differ in ``lr``."""
    class_name, arguments = CLASSES[name]
    second_lr = 0.4 * arguments.get("lr", 0.05)
    groups: Any = [{"params": params[:1]}, {"params": params[1:], "lr": second_lr}]
    if name in BASES:
        groups = BASES[name](groups)
    return getattr(sfplus_kernels, class_name)(groups, **arguments, backend=backend)


def has_modes(name: str) -> bool:
    return not name.endswith("closure")


def drive(name: str, optimizer: Any, params: list[nn.Parameter], steps: Iterable[int]) -> None:
    """These steps of one run, at the gradients of a fixed formula."""

    def give_gradients(k: int) -> float:
        for index, param in enumerate(params):
            places = torch.arange(param.numel(), dtype=torch.float64)
            gradient = torch.sin(0.7 * places + k + index) + 0.3
            param.grad = gradient.reshape(param.shape).to(param.device, param.dtype)
        return 2.0 + 0.1 * k

    for k in steps:
        if not has_modes(name):
            optimizer.step(lambda k=k: give_gradients(k))
        elif name == "plus":
            optimizer.step(loss=give_gradients(k))
        else:
            give_gradients(k)
            optimizer.step()


def iterates(optimizer: Any, params: list[nn.Parameter]) -> list[list[Tensor]]:
    """x, y and z of each parameter; of one that averages nothing the weight."""
    if not hasattr(optimizer, "iterates"):
        kept = [optimizer.state.get(p, {}).get("master_param", p) for p in params]
        return [[value.detach().cpu().clone()] for value in kept]
    return [[value.cpu() for value in optimizer.iterates(p)] for p in params]


def saved_run(name: str, dtype: torch.dtype, mode: str) -> dict[str, Any]:
    """What a file has for a mode."""
    params = make_params(dtype)
    optimizer = make_optimizer(name, params, "eager")
    if has_modes(name):
        optimizer.train()
    drive(name, optimizer, params, range(BEFORE))
    if mode == "eval":
        optimizer.eval()
    saved = {
        "params": [p.detach().clone() for p in params],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
    }
    if has_modes(name):
        optimizer.train()
    drive(name, optimizer, params, range(BEFORE, BEFORE + AFTER))
    return {**saved, "iterates": iterates(optimizer, params)}


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in CLASSES:
        for dtype in DTYPES if name in ("plus", "adamw") else DTYPES[:2]:
            modes = MODES if has_modes(name) and not name.startswith("plain") else ("train",)
            runs = {mode: saved_run(name, dtype, mode) for mode in modes}
            torch.save(runs, folder / f"{name}-{str(dtype).removeprefix('torch.')}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the files of this version.")
    parser.add_argument("folder", type=Path, help="a new one")
    main(parser.parse_args().folder)
