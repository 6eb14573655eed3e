"""The local server of the page: requests, streams of events, and who may ask.

It listens on the loopback interface alone. A page of another site could still ask the browser to send it requests, or
give its own name this machine's address (DNS rebinding), so a request whose Host is not this machine or whose Origin is
another page is refused.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gpt import ConfigError, GPTError
from gpt.errors import printable
from gpt.options import check_count
from gpt.sample import Sampling

from .analysis import Model
from .live import Follower

STATIC = Path(__file__).parent / "static"
NAMES = ("127.0.0.1", "localhost", "[::1]")  # what a Host header may call this machine
MOST_BYTES = 1_000_000  # of a request
MOST_CHARACTERS = 20_000  # of a text
MOST_TOKENS = 2000  # of a text on the page, and of a continuation
LISTED = 12  # tokens that the page shows as bars
LENS = 5  # tokens that it shows for each layer
PATIENCE = 20.0  # seconds that a page may take to receive an event
POLL = 0.3  # seconds between looks at what a run has new
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def new_server(models: list[Model], follower: Follower | None = None) -> uvicorn.Server:
    """A server of the page; `run(sockets=[…])` serves until Ctrl-C."""
    page = Page(models, follower)
    config = uvicorn.Config(
        new_app(page),
        log_level="warning",
        lifespan="off",
        limit_concurrency=64,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    server = uvicorn.Server(config)
    page.is_ending = lambda: server.should_exit
    return server


def new_app(page: Page) -> Guard:
    """The application."""
    routes = [
        Route("/", lambda request: FileResponse(STATIC / "page.html")),
        *(Route(f"/{name}", file_response) for name in ("page.css", "sampling.js", "page.js", "run.js")),
        Route("/models", page.about),
        Route("/tokens", page.tokens, methods=["POST"]),
        Route("/look", page.look, methods=["POST"]),
        Route("/generate", page.generate, methods=["POST"]),
        Route("/run", page.run),
    ]
    handlers: Any = {HTTPException: http_error, GPTError: user_error}
    return Guard(Starlette(routes=routes, exception_handlers=handlers))


def file_response(request: Request) -> FileResponse:
    return FileResponse(STATIC / request.url.path[1:])


def http_error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code)


def user_error(request: Request, error: GPTError) -> Response:
    return JSONResponse({"error": one_line(error)}, 400)


def one_line(error: Exception) -> str:
    """An error as a line for the page."""
    return printable(str(error)).partition("\n")[0][:500]


class Guard:
    """Refuses requests of other pages, and adds the security headers to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        problem = refusal(Request(scope))
        answer = PlainTextResponse(f"{problem}\n", 403) if problem else self.app
        await answer(scope, receive, send_with_headers)


def refusal(request: Request) -> str:
    """Why a request is refused, or ""."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    name, colon, port = host.rpartition(":")
    if not (colon and port.isdecimal()):
        name = host
    if name not in NAMES:
        return f"Host is {host!r:.100}; this server answers to {', '.join(NAMES)} alone"
    if origin not in (None, f"http://{host}"):
        return f"Origin is {origin!r:.100}; this server answers its own page alone"
    if request.method == "POST" and request.headers.get("content-type") != "application/json":
        return "Content-Type: expected application/json"
    return ""


class Page:
    """What the page may ask.

    follower: of a run, whose model of now comes before the others.
    is_ending: whether the server is about to end, and all streams with it.
    """

    def __init__(self, models: list[Model], follower: Follower | None) -> None:
        self.models, self.follower = models, follower
        self.is_ending: Callable[[], bool] = lambda: False

    async def about(self, request: Request) -> Response:
        """The models, and whether a run is followed."""
        models = [model.about() for model in self.current()]
        return JSONResponse({"models": models, "live": self.follower is not None, "most": MOST_TOKENS})

    async def tokens(self, request: Request) -> Response:
        """The tokens of a text."""
        body = await read(request)
        text = field(body, "text", str)
        if len(text) > MOST_CHARACTERS:
            raise ConfigError(f"the text has {len(text):,} characters; the page takes at most {MOST_CHARACTERS:,}")
        tokens = await asyncio.to_thread(self.model(body).tokens, text)
        if len(tokens) > MOST_TOKENS:
            raise ConfigError(f"the text has {len(tokens):,} tokens; the page takes at most {MOST_TOKENS:,}")
        return JSONResponse({"tokens": tokens})

    async def look(self, request: Request) -> Response:
        """All about the prediction after the last of the tokens. What the model does not see is left out."""
        body = await read(request)
        model = self.model(body)
        ids = model.check(field(body, "ids", list), MOST_TOKENS)
        target = body.get("target")
        if target is not None:
            model.check([target], 1)
        seen = ids[-model.model.config.block_size :]
        return JSONResponse(await asyncio.to_thread(explanation, model, seen, target))

    async def generate(self, request: Request) -> Response:
        """A stream of tokens, which ends when the page is gone."""
        body = await read(request)
        model = self.model(body)
        ids = model.check(field(body, "ids", list), MOST_TOKENS)
        length = field(body, "length", int)
        check_count("length", length, 1)
        if length > MOST_TOKENS:
            raise ConfigError(f"length is {length}; expected at most {MOST_TOKENS}")
        options = {name: body.get(name) for name in ("top_k", "top_p", "seed")}
        options["temperature"] = body.get("temperature", 1.0)
        Sampling(**options)  # checks the options before the answer begins
        tokens = model.continuation(ids, length, options)

        async def events() -> AsyncIterator[str]:
            try:
                while not self.is_ending():
                    token = await asyncio.to_thread(model.next_token, tokens)
                    if token is None:
                        yield event({"end": True})
                        return
                    yield event({"id": token, "text": model.label(token)})
            except GPTError as error:
                yield event({"error": one_line(error)})

        return EventStream(events())

    async def run(self, request: Request) -> Response:
        """A stream of what a followed run has written: first all so far, then what is new."""
        if self.follower is None:
            raise HTTPException(404, "no run is followed; start with --live")
        return EventStream(self.news(self.follower))

    async def news(self, follower: Follower) -> AsyncIterator[str]:
        rows = estimates = 0
        version = follower.version
        while not self.is_ending():
            if follower.version != version:  # the run went back, or another one began
                version, rows, estimates = follower.version, 0, 0
                yield event({"reset": True})
            new_rows, new_estimates = follower.rows[rows:], follower.estimates[estimates:]
            rows, estimates = rows + len(new_rows), estimates + len(new_estimates)
            if new_rows:
                yield event({"rows": new_rows})
            for estimate in new_estimates:
                yield event({"estimate": {**estimate, "attention": packed(estimate["attention"])}})
            if not new_rows and not new_estimates:
                yield ": nothing new\n\n"  # so that a page that is gone is noticed
            await asyncio.sleep(POLL)

    def current(self) -> list[Model]:
        """The models that are shown: those given, and before them that of the run."""
        newest = [self.follower.model] if self.follower and self.follower.model else []
        return [*newest, *self.models]

    def model(self, body: dict[str, Any]) -> Model:
        """The model that a request names by its number."""
        number, models = field(body, "model", int), self.current()
        if not 0 <= number < len(models):
            raise ConfigError(f"model is {number}; expected a number from 0 to {len(models) - 1}")
        return models[number]


class EventStream(StreamingResponse):
    """Server-sent events. A page that does not receive them within `PATIENCE` is given up."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_soon(message: Any) -> None:
            async with asyncio.timeout(PATIENCE):
                await send(message)

        with contextlib.suppress(TimeoutError):
            await super().__call__(scope, receive, send_soon)


def explanation(model: Model, ids: np.ndarray, target: int | None) -> dict[str, Any]:
    """A prediction as JSON. The page computes the probabilities from the logits, as its sliders say."""
    found = model.explain(ids, target)
    return {
        "target": {"id": found.target, "text": model.label(found.target)},
        "seen": len(ids),
        "logits": packed(found.logits),
        "likeliest": [
            token | {"logit": float(found.logits[token["id"]])} for token in top(model, found.logits, LISTED)
        ],
        "lens": [
            {
                "target": float(layer[found.target]),
                "top": [token | {"p": float(layer[token["id"]])} for token in top(model, layer, LENS)],
            }
            for layer in found.lens
        ],
        "attention": packed(found.attention),  # (n_layer, n_head, T)
        "influence": packed(found.influence),  # (T,)
    }


def top(model: Model, values: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The tokens with the largest values, largest first."""
    order = np.argsort(-values, kind="stable")[:count]
    return [{"id": int(token), "text": model.label(int(token))} for token in order]


def packed(values: np.ndarray) -> str:
    """Numbers as base64 of little-endian float32, of which the page makes a Float32Array."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


async def read(request: Request) -> dict[str, Any]:
    """The JSON object that a request contains."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"the request is too long; expected at most {MOST_BYTES:,} bytes")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "expected a JSON object")
    return body


def field(body: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a request. Raises `ConfigError` unless it has the type."""
    value = body.get(name)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {value!r:.100}; expected {'a' if kind is not int else 'an'} {kind.__name__}")
    return value
