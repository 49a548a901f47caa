"""A browser for the stories that people live in one: Debian's Chromium, logged in through the form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from local.stack import USER, LocalStack

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
MINUTES = 60_000.0
SCREEN: ViewportSize = {"width": 1440, "height": 900}


def need_chromium() -> None:
    """Skip the test if there is no browser."""
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium: `apt-get install chromium` installs it")


@contextmanager
def logged_in_page(stack: LocalStack) -> Iterator[Page]:
    """A browser window in which somebody has logged in; skips the test if there is no browser."""
    need_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        page = browser.new_context(viewport=SCREEN).new_page()
        page.set_default_timeout(2 * MINUTES)
        expect.set_options(timeout=2 * MINUTES)
        page.goto(stack.address)
        page.fill("input[name=username]", USER)
        page.fill("input[name=password]", stack.passwords[USER])
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name="Models", exact=True)).to_be_visible()
        yield page
        browser.close()


def camera(page: Page, scratch: Path) -> Callable[..., None]:
    """Return what takes a screenshot by name, `whole=True` with what lies below the window's edge too.

    Args:
        page: of what.
        scratch: a folder for them, if BCC_SCREENSHOTS names none.
    """
    folder = Path(os.environ.get("BCC_SCREENSHOTS") or scratch)
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(name: str, whole: bool = False) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=whole)

    return shoot
