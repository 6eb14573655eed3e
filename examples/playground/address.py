"""Where the page is served, and what serving it needs."""

from __future__ import annotations

import importlib.util
import socket

from gpt import ConfigError
from gpt.errors import reason

PORT = 8765


def check_extra() -> None:
    """Raise `ConfigError`, which names the extra, if the server's libraries are not installed."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'the page needs {" and ".join(missing)}, of the extra "playground": pip install -e ".[playground]"'
        )


def listen(port: int) -> socket.socket:
    """A socket that listens on the loopback interface; port 0 is any free one."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"port {port}: {reason(error)}; expected a free one") from error
    return listener


def address_of(port: int) -> str:
    """The address of the page."""
    return f"http://127.0.0.1:{port}"
