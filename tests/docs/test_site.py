"""The site builds without a warning, has every public name, and every page fits a phone."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from built_site import FIGURES

import sfplus_kernels
from sfplus_kernels import schedules


def test_every_public_name_is_on_a_page(site_folder: Path) -> None:
    """By the inventory that Sphinx writes beside the pages."""
    inventory = (site_folder / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    documented = {line.split()[0] for line in lines if " py:" in line}
    public = {f"sfplus_kernels.{name}" for name in sfplus_kernels.__all__}
    public |= {f"sfplus_kernels.schedules.{name}" for name in schedules.__all__}
    missing = public - documented
    assert missing == set()


def test_every_page_loads_and_fits_a_phone(visit: Any, site_folder: Path) -> None:
    pages = sorted(
        str(path.relative_to(site_folder).with_suffix("")) for path in site_folder.rglob("*.html")
    )
    assert {"index", "get-started", "api/optimizers", *FIGURES} <= set(pages)
    phone = visit("index", width=390)
    for name in pages:
        page = phone.open(name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
