"""Running the example programs inside the tests' own process, which is quicker than starting Python for each."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_program(name: str) -> Any:
    """The module of examples/{name}.py."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def run_program(name: str, *options: Any) -> int | str:
    """What running examples/{name}.py with these options ends with: 0, or the exit status or message."""
    before = sys.argv
    sys.argv = [f"examples/{name}.py", *map(str, options)]
    try:
        program = load_program(name)
        program.run_program(program.main)
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before
    return 0
