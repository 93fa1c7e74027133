"""``python -m sfplus_kernels memory MODEL``: what the optimizers keep of a model, in gigabytes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch

from sfplus_kernels.contract.eight_bits import BLOCK, SMALLEST
from sfplus_kernels.contract.formats import (
    EXPONENTS,
    STATE_FORMATS,
    buffer_dtypes,
    format_of,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CLASSES = {
    "AdamCScheduleFreePlus": ("exp_avg", "exp_avg_sq", "displacement"),
    "AdamWScheduleFree, inner_momentum": ("exp_avg", "exp_avg_sq", "displacement"),
    "AdamWScheduleFree, RAdam..., ...Paper": ("exp_avg_sq", "displacement"),
    "SGDScheduleFree": ("displacement",),
    "AdamW, AdamC": ("exp_avg", "exp_avg_sq"),
    "SGD with momentum": ("momentum_buffer",),
}

OTHERS = {  # bytes of state per float32 parameter, and per bfloat16 one; none of them averages
    "torch.optim.AdamW": (8.0, 4.0),
    "AdamW, float32 master": (8.0, 12.0),
    "AdamW8bit (bitsandbytes)": (2.03, 2.03),
    "FlashAdamW": (2.13, 3.13),
}

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def main(arguments: Sequence[str]) -> None:
    """Print the table; the exit status is 1 if the model is not understood."""
    parser = argparse.ArgumentParser(
        prog="python -m sfplus_kernels memory",
        description="What each optimizer keeps of a model, and that with parameters and gradients (of the "
        "parameters' dtype), in gigabytes of 10^9 bytes. Divide by the number of processes that the model is "
        "divided among.",
    )
    parser.add_argument(
        "model", help="a number of parameters, such as 7e9 or 1.3B, or a file .safetensors"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the parameters (default: bfloat16, or as in the file)"
    )
    given = parser.parse_args(arguments)
    try:
        print("\n".join(lines(parameters(given.model, given.dtype))))
    except (ValueError, OSError) as error:
        sys.exit(f"memory: {error}")


Counts = dict[tuple[str, bool], float]
"""How many parameters there are of each dtype, and of these in tensors that may be kept in 8 bits."""


def parameters(model: str, dtype: str | None = None) -> Counts:
    """Those of a model. Of a mere number of them, all count as in large matrices.

    Raises:
        ValueError: neither a number nor the name of a file of safetensors.
    """
    if model.endswith(".safetensors"):
        found = shapes_in(Path(model))
    else:
        factor = SUFFIXES.get(model[-1:].upper(), 1)
        try:
            numel = float(model if factor == 1 else model[:-1]) * factor
        except ValueError:
            numel = 0
        if not 0 < numel < float("inf"):
            raise ValueError(f"{model!r}; expected a number such as 7e9 or 1.3B, or a .safetensors")
        found = {("bfloat16", True): numel}
    if dtype is None:
        return found
    return {
        (dtype, kind): sum(numel for (_, in_blocks), numel in found.items() if in_blocks == kind)
        for kind in sorted({in_blocks for _, in_blocks in found})
    }


def shapes_in(path: Path) -> Counts:
    """The same of the floating-point tensors in a file of safetensors, of which the header alone is read."""
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    counts: Counts = {}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] in names:
            shape, numel = tensor["shape"], prod(tensor["shape"])
            in_blocks = len(shape) > 1 and numel >= SMALLEST and prod(shape[1:]) % BLOCK == 0
            kind = names[tensor["dtype"]], in_blocks
            counts[kind] = counts.get(kind, 0) + numel
    if not counts:
        raise ValueError(f"{path} has no tensor in float32, bfloat16 or float16")
    return counts


def lines(counts: Counts) -> Iterator[str]:
    """The table, line by line."""
    held = sum(2 * DTYPES[dtype].itemsize * numel for (dtype, _), numel in counts.items())
    each = {
        dtype: sum(numel for (other, _), numel in counts.items() if other == dtype)
        for dtype, _ in counts
    }
    model = ", ".join(f"{numel:,.0f} parameters in {dtype}" for dtype, numel in each.items())
    yield f"{model}: {held / 1e9:.2f} GB with their gradients"
    yield ""
    yield f"{'optimizer':<38} {'state_format':<13} {'state':>9} {'in all':>9}"
    for name, buffers in CLASSES.items():
        for state_format in STATE_FORMATS:
            state = sum(
                numel * bytes_per_parameter(dtype, buffers, state_format, in_blocks)
                for (dtype, in_blocks), numel in counts.items()
            )
            yield f"{name:<38} {state_format:<13} {state / 1e9:>9.2f} {(state + held) / 1e9:>9.2f}"
    for name, (single, half) in OTHERS.items():
        state = sum(numel * (single if d == "float32" else half) for d, numel in each.items())
        yield f"{name:<38} {'':<13} {state / 1e9:>9.2f} {(state + held) / 1e9:>9.2f}"
    yield ""
    yield "The last four are for comparison, computed from what they store; none keeps an average of weights."


def bytes_per_parameter(
    dtype: str, buffers: Sequence[str], state_format: str, in_blocks: bool
) -> float:
    """Of state, beside the parameter."""
    kept = format_of(DTYPES[dtype], buffers, state_format, in_blocks=in_blocks)
    dtypes = buffer_dtypes(DTYPES[dtype], buffers, kept)
    return sum(kept.itemsize / (BLOCK if name == EXPONENTS else 1) for name, kept in dtypes.items())
