"""Checkpoints that trainers wrote, read without the model: weights and optimizer state by parameter name.

Each layout is one function from a path to a ``Found``. What cannot be told apart is refused, and why, and
what would work.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints.found import CannotTellError, Found, check_optimizer, checked
from sfplus_kernels.checkpoints.names import by_name
from sfplus_kernels.checkpoints.unsettled import Y_BETA
from sfplus_kernels.contract.formats import BUFFERS, STEP


def read(path: Path, names: Sequence[str] | None = None) -> Found:
    """Read a checkpoint of any layout that is known.

    Args:
        path: a file or a folder.
        names: of the parameters in the order of the optimizer's groups, for files that do not have them.

    Raises:
        CannotTellError: see its text.
        OSError: nothing is there.
    """
    if path.is_dir():
        if (path / ".metadata").exists():
            return _distributed(path)
        return _folder(path, names)
    content = _loaded(path)
    if isinstance(content, Mapping) and "optimizer_states" in content:
        return _lightning(content, names)
    for key in ("optimizer", "optim", "optimizer_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            weights = _weights_in(content)
            if weights is not None:
                return by_name("one file", weights, content[key], names, in_order=True)
    raise CannotTellError(
        f"{path.name} has no optimizer state beside the weights; expected a trainer's checkpoint: a folder "
        "with model.safetensors and optimizer.pt or optimizer.bin, a folder of torch.distributed.checkpoint, "
        "Lightning's .ckpt, or a file with 'model' and 'optimizer'. Weights alone do not say whether they "
        "are x or y"
    )


# -- layouts ----------------------------------------------------------------------------------------


def _folder(path: Path, names: Sequence[str] | None) -> Found:
    """Hugging Face Trainer's and Accelerate's: weights in safetensors or pickles, optimizer.pt or .bin."""
    if list(path.glob("*zero_pp_rank*")) or list(path.glob("global_step*")):
        raise CannotTellError(
            "this is a checkpoint of DeepSpeed's ZeRO, whose state is flat pieces of the parameters; load "
            "it into the engine, call sfplus_kernels.integrations.deepspeed.eval(engine), and save the model"
        )
    files = [path / name for name in ("optimizer.pt", "optimizer.bin") if (path / name).exists()]
    if not files:
        raise CannotTellError(
            f"{path} has neither optimizer.pt nor optimizer.bin (nor .metadata); expected the folder of one "
            "checkpoint, such as checkpoint-500, saved with its optimizer"
        )
    weights: dict[str, Tensor] = {}
    for pattern in ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*.bin"):
        for file in sorted(path.glob(pattern)):
            weights |= _loaded(file)
        if weights:
            break
    if not weights:
        raise CannotTellError(
            f"{path} has no model*.safetensors, adapter_model.safetensors or pytorch_model*.bin"
        )
    config = path / "config.json"
    return by_name(
        "folder",
        weights,
        _loaded(files[0]),
        names,
        config if config.exists() else None,
        in_order=pattern.endswith(".bin"),
    )


def _lightning(content: Mapping[str, Any], names: Sequence[str] | None) -> Found:
    states = content["optimizer_states"]
    if len(states) != 1:
        raise CannotTellError(
            f"the file has {len(states)} optimizers; expected one. Load it into the model and the "
            "optimizers, call eval() of each, and save the model"
        )
    return by_name("Lightning", content["state_dict"], states[0], names, in_order=True)


def _distributed(path: Path) -> Found:
    """torch.distributed.checkpoint: names are in the keys; tensors are put together from all ranks' files."""
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    with warnings.catch_warnings():
        # in one process, on purpose
        warnings.filterwarnings("ignore", "torch.distributed is")
        content = flat(_load_state_dict_from_keys(checkpoint_id=path))
    state: dict[str, dict[str, Tensor]] = {}
    groups: dict[str, Mapping[str, Any]] = {}
    numbered: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    places: set[str] = set()  # what comes before the parameter's name in the keys of its state
    for key, value in content.items():
        kind, name, last = _split(key)
        if kind == "state":
            state.setdefault(name, {})[last] = torch.as_tensor(value)
            places.add(key.removesuffix(f"{name}.{last}"))
        elif (
            kind == "param_groups"
        ):  # get_state_dict numbers them, torchtitan has one for each parameter
            group = numbered.setdefault(name, {})
            group[last] = value
            groups[name] = group
        elif isinstance(value, Tensor):
            tensors[key] = value
    for group in numbered.values():
        for name in group.pop("params", ()):
            groups[name] = group
    root = next((key.removesuffix(name) for name in state for key in tensors if _is(key, name)), "")
    weights = {key.removeprefix(root): v for key, v in tensors.items() if key.startswith(root)}
    # what others keep in the state of a parameter has unknown names, and is no weight
    within = {
        key: key.removeprefix(p).rpartition(".")[0]
        for p in places
        for key in weights
        if key.startswith(p)
    }
    weights = {key: value for key, value in weights.items() if within.get(key) not in weights}
    check_optimizer(numbered.values(), state.values())
    in_groups = {name: groups[name] for name in state if name in groups}
    return checked(Found("torch.distributed.checkpoint", weights, state, in_groups))


def _split(key: str) -> tuple[str, str, str]:
    """("state" or "param_groups" or "", parameter or group, buffer or option) of a flat key."""
    rest, _, last = key.rpartition(".")
    for kind in ("state", "param_groups"):
        _, found, name = f".{rest}".partition(f".{kind}.")
        # a module may be called "state" too
        if found and (kind != "state" or last in (*BUFFERS, STEP, Y_BETA, "z")):
            return kind, name, last
    return "", "", ""


def _is(key: str, name: str) -> bool:
    """Whether ``key`` is ``name`` below some root, such as "model."."""
    return key == name or key.endswith(f".{name}")


def _weights_in(content: Mapping[str, Any]) -> dict[str, Tensor] | None:
    for key in ("model", "state_dict", "model_state_dict"):
        found = content.get(key)
        if isinstance(found, Mapping) and any(isinstance(v, Tensor) for v in found.values()):
            return {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return None


# -- small ------------------------------------------------------------------------------------------


def _loaded(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise CannotTellError(
                f"{path.name} needs the package safetensors: pip install safetensors"
            ) from None
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CannotTellError(
            f"torch.load(weights_only=True) cannot read {path.name}: {str(error).splitlines()[0]}"
        ) from error


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dots between the keys; lists of dictionaries likewise, by number."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            result |= flat({str(i): v for i, v in enumerate(value)}, f"{name}.")
        else:
            result[name] = value
    return result
