"""Everybody who is timed."""

from __future__ import annotations

from dataclasses import replace

import torch

from bench.contestants.contestant import Contestant
from bench.contestants.family import FAMILY, of_family
from bench.contestants.peers import PEERS, compiled_adamw, of_peer


def contestants(device: torch.device, chosen: str = "") -> list[Contestant]:
    """All, those that are absent here too; with ``chosen``, those whose name contains one of its
    comma-separated parts (in any case of letters), and the baseline.

    Raises:
        ValueError: nothing has such a name.
    """
    found = [c for family in FAMILY for c in of_family(family, device)]
    peers = [of_peer(peer, device) for peer in PEERS]
    found += [*peers[:2], compiled_adamw(device), *peers[2:]]
    parts = [part.strip().lower() for part in chosen.split(",") if part.strip()]
    for part in parts:
        if not any(part in c.name.lower() for c in found):
            names = ", ".join(c.name for c in found)
            raise ValueError(f"no optimizer has {part!r} in its name; expected a part of: {names}")
    if not parts:
        return found
    kept = [c for c in found if any(part in c.name.lower() for part in parts)]
    baseline = [c for c in found if c.name == PEERS[0].name and c not in kept]
    return [replace(c, tier="fused") for c in kept] + baseline
