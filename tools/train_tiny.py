"""Trains a tiny model with the installed package: what a wheel must be able to do anywhere."""

import argparse
import sys
from pathlib import Path

import torch

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus, backends


def main() -> None:
    """Raise if the compiled extension is missing or the loss does not fall."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    report = backends.report()
    print(f"sfplus_kernels {sfplus_kernels.__version__}, torch {torch.__version__}: {report}")
    assert report["cpu"] == "available", report["cpu"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 33), torch.nn.Tanh(), torch.nn.Linear(33, 2)).to(
        device
    )
    x = torch.randn(256, 8, device=device)
    labels = (x.sum(1) > 0).long()
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1)
    optimizer.train()
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    optimizer.eval()
    final = torch.nn.functional.cross_entropy(model(x), labels).item()
    print(f"loss {losses[0]:.3f} -> {final:.3f} on {device}")
    assert final < losses[0] / 2
    origin = Path(sfplus_kernels.__file__)
    assert "site-packages" in origin.parts, f"imported from {origin}, not from an installed wheel"


if __name__ == "__main__":
    sys.exit(main())
