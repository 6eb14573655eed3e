"""The playground's server in a thread of the tests, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, CharTokenizer, GPTConfig

pytest.importorskip("starlette", reason='the playground\'s server needs the extra "playground"')
pytest.importorskip("uvicorn", reason='the playground\'s server needs the extra "playground"')

from playground import server  # noqa: E402
from playground.address import listen  # noqa: E402
from playground.analysis import Model  # noqa: E402

TEXT = "the quick brown fox jumps over the lazy dog\n"


def small_gpt(seed: int = 0, **options: Any) -> GPT:
    """A model with weights so large that its predictions are far from even."""
    shape = {"block_size": 16, "vocab_size": len(set(TEXT)), "n_layer": 2, "n_head": 2, "n_embd": 8}
    model = GPT(GPTConfig(**(shape | options)))
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.normal(0, 0.5, parameter.shape)
    return model.eval()


def small_model(seed: int = 0, **options: Any) -> Model:
    return Model(f"small-{seed}", small_gpt(seed, **options), CharTokenizer.from_text(TEXT))


@contextlib.contextmanager
def serving(models: list[Model], follower: Any = None) -> Iterator[int]:
    """Inside this context, the page is served at the port that is given."""
    with listen(0) as listener:
        running = server.new_server(models, follower)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: running.started)
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def wait_until(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def ask(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """The status and the content of an answer, parsed if it is JSON."""
    with contextlib.closing(send(port, path, body, **headers)) as connection:
        answer = connection.getresponse()
        content = answer.read().decode()
        if answer.headers.get("Content-Type") == "application/json":
            return answer.status, json.loads(content)
        return answer.status, content


def send(port: int, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
    """Send a request. The headers are given with _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if content is not None:
        given = {"Content-Type": "application/json"} | given
    connection.request("GET" if content is None else "POST", path, content, given)
    return connection


def events(content: str) -> list[dict[str, Any]]:
    """The server-sent events of an answer."""
    return [json.loads(line.removeprefix("data: ")) for line in content.splitlines() if line.startswith("data: ")]


def ids_of(text: str) -> list[int]:
    return CharTokenizer.from_text(TEXT).encode(text).tolist()


def log_probability(model: GPT, embedded: np.ndarray, target: int) -> float:
    """Of the token after the last, from the input of the first block (1, T, C)."""
    with mg.no_grad():
        x = mg.Tensor(embedded)
        for block in model.h:
            x = block(x)
        return mg.functional.log_softmax(model.logits(model.ln_f(x[:, -1]))).numpy()[0, target]
