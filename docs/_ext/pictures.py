"""Pictures of the pages that are drawn once and kept: `python docs/_ext/pictures.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

from sfplus_kernels.reference import SGDScheduleFreeReference

HERE = Path(__file__).parents[1]
COLOURS = {"z": "#00795a", "y": "#c65102", "x": "#0072b2"}  # Okabe and Ito's, darker


def three_sequences(path: Path) -> None:
    """x, y and z of one weight on a noisy parabola."""
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = SGDScheduleFreeReference([weight], lr=0.35, momentum=0.8)
    optimizer.train()
    rows = []
    for _ in range(70):
        weight.grad = 0.5 * weight.detach() + 1.5 * torch.randn(1, dtype=torch.float64)
        optimizer.step()
        rows.append([float(optimizer.state[weight][name]) for name in COLOURS])
    lines = dict(zip(COLOURS, np.array(rows).T, strict=True))

    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    looks = {"z": {"lw": 1, "ls": (0, (2, 1))}, "y": {"lw": 1.6, "ls": "--"}, "x": {"lw": 3}}
    names = {"z": "z takes the steps", "y": "y: gradients are taken here", "x": "x is the result"}
    for name, values in lines.items():
        axes.plot(values, color=COLOURS[name], label=names[name], **looks[name])
    axes.axhline(0, color="#6b6b6b", lw=0.8)
    axes.set(xlabel="step", xlim=(0, 69), yticks=[0], yticklabels=["minimum"])
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    mpl.rcParams.update({"svg.hashsalt": "sfplus_kernels"})  # the same file each time
    three_sequences(HERE / "three_sequences.svg")
