"""Which parameter is which, in an optimizer's state that knows them by number only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints.found import CannotTellError, Found, check_optimizer, checked

WRAPPERS = ("_orig_mod.", "module.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""What wrappers of a model put before or into the names of its parameters."""

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""How the names of tensors end that are never parameters: BatchNorm's."""


def by_name(
    layout: str,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    names: Sequence[str] | None,
    config: Path | None = None,
    *,
    in_order: bool,
) -> Found:
    """A state dict of torch.optim, whose parameters are numbers: find the name of each.

    Args:
        layout: a word for it.
        weights: by name.
        optimizer: its state dict.
        names: in the order of its groups, if the user gave them.
        config: Hugging Face's config.json, if there is one.
        in_order: whether ``weights`` are in the order of the model; safetensors sorts them.
    """
    groups = optimizer["param_groups"]
    order = [index for group in groups for index in group["params"]]
    state = optimizer["state"]
    check_optimizer(groups, state.values())
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    elif names is None:
        names = _guessed(groups, order, state, tensors if in_order else {}, config)
    if len(names) != len(order):
        raise CannotTellError(
            f"{len(names)} names for the {len(order)} parameters of the optimizer; expected one for each, "
            "in the order of its groups"
        )
    found = {}
    in_group: dict[str, Mapping[str, Any]] = {}
    wanted = dict(zip(order, names, strict=True))
    plain = {bare(name): name for name in tensors}
    for group in groups:
        for index in group["params"]:
            name = plain.get(bare(wanted[index]))
            if name is None:
                raise CannotTellError(
                    f"the optimizer has a parameter {wanted[index]!r} that is not among the weights "
                    f"({', '.join(list(tensors)[:3])}, ...); pass the names as they are there with "
                    "--names-from"
                )
            in_group[name] = {key: value for key, value in group.items() if key != "params"}
            if state.get(index):
                found[name] = state[index]
    return checked(Found(layout, tensors, found, in_group))


def bare(name: str) -> str:
    """A parameter's name without what wrappers (DDP, torch.compile, FSDP, PEFT) put into it."""
    for part in WRAPPERS:
        name = name.replace(part, "")
    return name.replace(".default.", ".")


def _guessed(
    groups: Sequence[Mapping[str, Any]],
    order: Sequence[Any],
    state: Mapping[Any, Mapping[str, Tensor]],
    weights: Mapping[str, Tensor],
    config: Path | None,
) -> list[str]:
    """Names by the model's class, or by the only way in which the shapes fit in order."""
    if config is not None:
        found = _by_class(config, [len(group["params"]) for group in groups])
        if found is not None:
            return found
    # several groups may have them in another order than the model
    if len(groups) > 1:
        weights = {}
    displacements = [state.get(i, {}).get("displacement") for i in order]
    shapes = [None if e is None else tuple(e.shape) for e in displacements]
    likely = [name for name in weights if not name.endswith(BUFFERS)]
    ways = fits(shapes, [tuple(weights[name].shape) for name in likely])
    if ways is None:
        raise CannotTellError(
            "the optimizer's groups have no param_names (sfplus_kernels.follow saves them), and the shapes "
            "of its parameters do not say which of the weights they are (safetensors does not keep the "
            "order); pass --names-from FILE with one name a line, in the order of the groups: "
            "[n for n, _ in model.named_parameters()]"
        )
    return [likely[place] for place in ways]


def _by_class(config: Path, sizes: Sequence[int]) -> list[str] | None:
    """The order of a Hugging Face model's parameters, in one group or in the Trainer's two."""
    try:
        import transformers
    except ImportError:
        return None
    architecture = (json.loads(config.read_text()).get("architectures") or [None])[0]
    if architecture is None or not hasattr(transformers, architecture):
        return None
    settings = transformers.AutoConfig.from_pretrained(config.parent)
    with torch.device("meta"):
        model = getattr(transformers, architecture)(settings)
    names = [name for name, _ in model.named_parameters()]
    if len(sizes) == 1:
        return names if sizes[0] == len(names) else None
    decay = set(transformers.Trainer.get_decay_parameter_names(None, model))
    two = [[n for n in names if n in decay], [n for n in names if n not in decay]]
    return [name for part in two for name in part] if [len(p) for p in two] == list(sizes) else None


def fits(
    wanted: Sequence[tuple[int, ...] | None], there: Sequence[tuple[int, ...]]
) -> list[int] | None:
    """Places of ``wanted`` in ``there``, in order; None unless there is exactly one way.

    A None in ``wanted`` fits everywhere.
    """
    # how many ways from (i, j) on, at most 2
    ways = [[0] * (len(there) + 1) for _ in range(len(wanted) + 1)]
    ways[len(wanted)] = [1] * (len(there) + 1)
    for i in reversed(range(len(wanted))):
        for j in reversed(range(len(there))):
            taken = ways[i + 1][j + 1] if wanted[i] in (None, there[j]) else 0
            ways[i][j] = min(2, taken + ways[i][j + 1])
    if ways[0][0] != 1:
        return None
    places, j = [], 0
    for i in range(len(wanted)):
        while not (wanted[i] in (None, there[j]) and ways[i + 1][j + 1]):
            j += 1
        places.append(j)
        j += 1
    return places
