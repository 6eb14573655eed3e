"""What tests of the GPT share by name."""

import importlib.util

import pytest


@pytest.fixture
def blank_pictures(monkeypatch):
    """Figures are composed, and saved empty: to render them takes longer than the small runs that they are of."""
    if importlib.util.find_spec("matplotlib"):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **_: file.write(b"no picture"))
