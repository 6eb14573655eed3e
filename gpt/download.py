"""Downloads: fetched whole, checked, and kept in a cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from minigrad.cache import cache_folder
from minigrad.serialization import replace

from .errors import DataError, reason

TIME_LIMIT = 6 * 3600.0  # seconds; gpt2-xl, the largest model, then takes 300 kB a second


class NotFoundError(DataError):
    """The server answered that it does not have the file."""


def cache_directory() -> Path:
    """Where downloads are kept: minigrad's cache folder. Raises `DataError` if there is no home folder to put it in."""
    try:
        return cache_folder()
    except RuntimeError as error:
        raise DataError("there is no home folder to keep downloads in; set MINIGRAD_CACHE to a folder") from error


def download(
    url: str,
    sha256: str | None,
    path: str | os.PathLike[str],
    timeout: float = 30.0,
    progress: bool = False,
    size: int | None = None,
    time_limit: float = TIME_LIMIT,
) -> None:
    """Download a file to `path` and check its checksum.

    sha256: the checksum; None takes the one that the server states, as Hugging Face's server does.
    timeout: the longest silence of the server, in seconds. time_limit: the longest time in total.
    progress: show a bar.
    size: the number of bytes; None takes the one that the server states first. A server that sends more is cut off.

    A transfer that is cut off continues where it stopped, as long as each attempt brings more of the file. Raises
    `DataError` that says what went wrong, also for a redirect from https to anything else; `path` is then unchanged,
    since it is only ever replaced whole.
    """
    path, transfer = Path(path), _Transfer(url, timeout, size, time.monotonic() + time_limit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder, path.name)
            bar = tqdm(desc=path.name, unit="B", unit_scale=True, disable=not progress)
            with bar, open(temporary, "wb") as file:
                for chunk in transfer:
                    bar.total = transfer.size
                    file.write(chunk)
                    bar.update(len(chunk))
                file.flush()
                os.fsync(file.fileno())
            _check(url, temporary, sha256 or transfer.checksum)
            replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error


class _Transfer:
    """The content of a URL, in chunks; `size` and `checksum` are what the server states, or None."""

    def __init__(self, url: str, timeout: float, size: int | None, deadline: float) -> None:
        self.url, self.timeout, self.size, self.deadline = url, timeout, size, deadline
        self.checksum: str | None = None
        self.opener = urllib.request.build_opener(_Redirects(self))

    def __iter__(self) -> Iterator[bytes]:
        received, before = 0, -1
        while received > before:
            before = received
            try:
                with self.open_at(received) as response:
                    position = received if response.status == 206 else 0  # 200: the server starts again at byte 0
                    if self.size is None and response.length is not None:
                        self.size = position + response.length
                    while chunk := response.read1(1 << 20):  # what has arrived
                        position += len(chunk)
                        if self.size is not None and position > self.size:
                            raise DataError(f"{self.url}: the server sends more than the expected {self.size} bytes")
                        if time.monotonic() > self.deadline:
                            raise DataError(f"{self.url}: took too long; {position} bytes arrived")
                        if position > received:
                            yield chunk[received - position :]
                            received = position
                if self.size is None or position == self.size:
                    return
                failure = f"the connection was cut after {received} bytes, {self.size - received} short"
            except DataError:
                raise
            except http.client.IncompleteRead:
                failure = f"the connection was cut after {received} bytes"
            except urllib.error.HTTPError as error:
                error.close()
                kind = NotFoundError if error.code == 404 else DataError
                raise kind(f"{self.url}: the server answered {error.code} {error.reason}") from error
            except (OSError, http.client.HTTPException, ValueError) as error:  # no network, a time-out, no such scheme
                failure = reason(error)
        raise DataError(f"{self.url}: {failure}")

    def open_at(self, position: int) -> Any:
        """The server's response to a request for the bytes from `position` on."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        response = self.opener.open(urllib.request.Request(self.url, headers=headers), timeout=self.timeout)
        self.note(response.url, response.headers, "ETag")
        return response

    def note(self, url: str, headers: Any, *also: str) -> None:
        """Keep size and checksum in the headers, unless they come from another server, reached by a redirect."""
        if urlsplit(url).netloc == urlsplit(self.url).netloc:
            if self.size is None and headers.get("X-Linked-Size", "").isdecimal():
                self.size = int(headers["X-Linked-Size"])
            for name in ("X-Linked-ETag", *also):
                digits = re.fullmatch(r'(?:W/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?', headers.get(name, ""))
                if digits and self.checksum is None:
                    self.checksum = digits[1]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects. Hugging Face states a large file's checksum in the response that redirects."""

    def __init__(self, transfer: _Transfer) -> None:
        self.transfer = transfer

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.transfer.note(req.full_url, headers)
        if urlsplit(req.full_url).scheme == "https" != urlsplit(newurl).scheme:
            raise DataError(f"{req.full_url}: redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check(url: str, path: Path, checksum: str | None) -> None:
    """Compare a file with its SHA-256, or, for a checksum of 40 digits, with its SHA-1 as git computes it."""
    if checksum is None:
        raise DataError(f"{url}: the server states no checksum to check the file with")
    if len(checksum) == 64:
        name, digest = "SHA-256", hashlib.sha256()
    else:
        name, digest = "SHA-1", hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        received = hashlib.file_digest(file, lambda: digest).hexdigest()
    if received != checksum:
        raise DataError(f"{url}: not the file that was expected: its {name} is {received}; expected {checksum}")
