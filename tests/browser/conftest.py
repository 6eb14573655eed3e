"""Pages in a real browser: headless Chromium, driven by playwright, where both are installed."""

import contextlib
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def new_page(browser):
    """A context manager that opens an empty page. At its end nothing may have been written to the page's console."""

    @contextlib.contextmanager
    def opened(width=1280, height=900):
        with browser.new_context(viewport={"width": width, "height": height}) as context:
            page, problems = context.new_page(), []
            page.set_default_timeout(10_000)
            page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.problems = problems
            yield page
            assert not problems

    return opened
