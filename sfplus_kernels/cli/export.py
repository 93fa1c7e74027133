"""``python -m sfplus_kernels export``: the averaged weights out of a checkpoint, without the model."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sfplus_kernels.checkpoints.files import read
from sfplus_kernels.checkpoints.found import CannotTellError, averaged, distance, in_train_mode

BESIDE = (
    *("config.json", "generation_config.json", "adapter_config.json", "preprocessor_config.json"),
    *("chat_template*", "*token*", "vocab*", "merges.txt", "*.model"),
)
"""Files that from_pretrained wants beside the weights."""


def main(arguments: Sequence[str]) -> None:
    """Export, or say what a checkpoint holds; the exit status is 1 if it cannot be told."""
    parser = argparse.ArgumentParser(
        prog="python -m sfplus_kernels export",
        description="The averaged weights, x, out of a checkpoint: those to evaluate and to ship. A "
        "checkpoint that was saved in train mode holds y; this forms x from it and from the state.",
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a file or a folder; docs/integrations.md lists the layouts"
    )
    parser.add_argument(
        "out", type=Path, nargs="?", help="a new folder, or a file .safetensors or .pt"
    )
    parser.add_argument(
        "--check", action="store_true", help="say whether it holds x or y, and write nothing"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of floating-point weights"
    )
    parser.add_argument(
        "--names-from",
        type=Path,
        help="a file with the names of the optimizer's parameters, one a line",
    )
    given = parser.parse_args(arguments)
    if (given.out is None) is not given.check:
        parser.error("give OUT, or --check without it")
    names = given.names_from.read_text().split() if given.names_from else None
    try:
        if given.check:
            print(check(given.checkpoint, names))
        else:
            print(export(given.checkpoint, given.out, names, given.dtype))
    except (CannotTellError, FileExistsError, FileNotFoundError) as error:
        sys.exit(f"export: {error}")


def check(checkpoint: Path, names: Sequence[str] | None = None) -> str:
    """What ``--check`` says."""
    found = read(checkpoint, names)
    far = f"max |x - y| is {distance(found):.3g}"
    if in_train_mode(found):
        return f"{checkpoint} ({found.layout}) holds y, not the averaged weights; {far}. export writes x"
    return f"{checkpoint} ({found.layout}) holds x, the averaged weights; {far}"


def export(
    checkpoint: Path, out: Path, names: Sequence[str] | None = None, dtype: str | None = None
) -> str:
    """Write x of ``checkpoint`` to ``out``.

    Args:
        checkpoint: a file or a folder of a known layout.
        out: a file .safetensors or .pt, or a folder, which gets model.safetensors and what stands beside it.
        names: of the optimizer's parameters, where the checkpoint does not have them.
        dtype: of the floating-point weights; None leaves each as it is.

    Returns:
        What was done, in a sentence.

    Raises:
        CannotTellError: the checkpoint is not understood; nothing is written.
        FileExistsError: ``out`` is there already.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already; name a new one")
    found = read(checkpoint, names)
    weights = averaged(found)
    if dtype is not None:
        wanted = getattr(torch, dtype)
        weights = {n: v.to(wanted) if v.is_floating_point() else v for n, v in weights.items()}
    if out.suffix in (".pt", ".pth", ".bin"):
        torch.save(weights, out)
    elif out.suffix == ".safetensors":
        _save(weights, out)
    else:
        out.mkdir(parents=True)
        adapter = checkpoint.is_dir() and (checkpoint / "adapter_model.safetensors").exists()
        _save(weights, out / ("adapter_model.safetensors" if adapter else "model.safetensors"))
        if checkpoint.is_dir():
            for pattern in BESIDE:
                for file in checkpoint.glob(pattern):
                    shutil.copy(file, out)
    what = "y, x was formed from it" if in_train_mode(found) else "x already, it is copied"
    return f"{out}: {len(weights)} tensors; {checkpoint} ({found.layout}) held {what}"


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    """safetensors keeps one name of a tied tensor; the others come back with the model's class."""
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise CannotTellError(
            f"{path.name} needs the package safetensors: pip install safetensors, or name an OUT that ends "
            "in .pt"
        ) from None
    first: dict[tuple, str] = {}
    kept = {}
    for name, value in weights.items():
        place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)
        if first.setdefault(place, name) == name:
            kept[name] = value.contiguous()
    save_file(kept, path, metadata={"format": "pt"})
