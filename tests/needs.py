"""What some tests need of the machine they run on; where it is missing they are skipped, with the reason."""

import os
import sys
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or sys.platform == "darwin",  # macOS's matrix library does not work in a copied process
    reason="this system cannot copy a process",
)

# Texts and vocabularies that are not part of the repository
DATA = Path(os.environ.get("MINIGRAD_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def data_file(name: str) -> Path:
    """A file of DATA."""
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in ../shared/data, beside this repository, nor where MINIGRAD_TEST_DATA says")
    return DATA / name
