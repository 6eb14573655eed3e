"""A real browser for tests: Chromium, driven by playwright. Where one of the two is missing, the tests are skipped."""

import contextlib
import os
import shutil

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window: MINIGRAD_TEST_BROWSER names the program, or it is found on the PATH."""
    sync_api = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[browser]"')
    program = os.environ.get("MINIGRAD_TEST_BROWSER") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no Chromium: {', '.join(PROGRAMS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """Opens pages for a test. See `pages`."""
    with pages(browser) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def lasting_page(browser):
    """Opens pages that several tests share. See `pages`."""
    with pages(browser) as open_page:
        yield open_page


@contextlib.contextmanager
def pages(browser):
    """`page(address, width, dark, motion)` opens an address in a window of that width and returns playwright's page.

    address: a URL, or the path of a file. dark: the color scheme. motion: False for a user who wants none.
    At the end no page may have written an error or a warning to the console, raised an error, or failed to load
    something that it did not give up itself. Each page lists these `problems`; a test may remove those that it expects.
    """
    contexts, problems = [], []
    note = problems.append

    def open_page(address, width=1280, height=800, dark=False, motion=True):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="no-preference" if motion else "reduce",
        )
        contexts.append(context)
        opened = context.new_page()
        opened.set_default_timeout(10_000)
        opened.problems = problems
        opened.on("console", lambda m: note(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: note(str(error)))
        opened.on("requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else note(f"failed: {r.url}"))
        opened.goto(address.as_uri() if hasattr(address, "as_uri") else address)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
