"""The site, built once for the tests of one process, and visits to it in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import built_site
import pytest
from built_site import FIGURES


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = built_site.why_not_built()
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("site")
    built_site.build(path)
    return path


@pytest.fixture(scope="session")
def address(site_folder: Path) -> Iterator[str]:
    with built_site.served(site_folder) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason = built_site.why_no_browser()
    if reason is not None:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=built_site.CHROMIUM, args=built_site.FLAGS.split()
        )
        yield browser
        browser.close()


class Visit:
    """A page, and what it complained of or asked of others."""

    def __init__(
        self, browser: Any, address: str, width: int = 1280, scheme: str = "light"
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.address = address
        self.complaints: list[str] = []
        self.page = self.context.new_page()
        self.page.on(
            "console", lambda m: self.complaints.append(m.text) if m.type != "log" else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self.note_request)

    def note_request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"request to {request.url}")

    def open(self, name: str) -> Any:
        self.page.goto(f"{self.address}/{name}.html")
        if name in FIGURES:
            self.page.wait_for_selector(f"{FIGURES[name]} svg[role=img]")
        return self.page


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    visits: list[Visit] = []

    def make(name: str, **options: Any) -> Visit:
        visits.append(Visit(browser, address, **options))
        visits[-1].open(name)
        return visits[-1]

    yield make
    for made in visits:
        assert made.complaints == []
        made.context.close()
