"""What tests/test_data.py leaves open: checksums that the server states, and transfers that are taken up again."""

import hashlib
import itertools
import math
import time
import urllib.request

import pytest

from gpt import DataError
from gpt.download import NotFoundError, download
from gpt.download import _Redirects as Redirects
from gpt.download import _Transfer as Transfer
from tests.fakes.hub import Hub

CONTENT = bytes(range(256)) * 20_000  # several reads
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Hub().running() as hub:
        hub.files = {"/small": b"hello\n", "/large": CONTENT}
        hub.large = {"/large"}
        yield hub


@pytest.fixture
def kept(tmp_path):
    """Where the file goes, in a folder that has nothing else when the test is over."""
    yield tmp_path / "file"
    assert {path.name for path in tmp_path.rglob("*")} <= {"file"}


def test_a_small_file_is_checked_by_its_git_hash(hub, kept):
    hub.etags["/small"] = '"ce013625030ba8dba906f756967f9e9ca394464a"'  # echo hello | git hash-object --stdin
    download(f"{hub.address}/small", None, kept)
    assert kept.read_bytes() == b"hello\n"


def test_a_large_file_is_checked_by_the_sha256_that_comes_before_the_redirect(hub, kept):
    download(f"{hub.address}/large", None, kept)
    assert kept.read_bytes() == CONTENT
    assert [path for path, _ in hub.asked] == ["/large", "/elsewhere/large"]


@pytest.mark.parametrize(
    ("path", "stated", "message"),
    [
        ("/small", f'"{"1" * 40}"', "its SHA-1 is ce013625030ba8dba906f756967f9e9ca394464a; expected 1111"),
        ("/large", f'"{"1" * 64}"', f"its SHA-256 is {SHA256}; expected 1111"),
        ("/small", None, "the server states no checksum"),
        ("/small", '"an etag of another kind"', "the server states no checksum"),
    ],
)
def test_a_wrong_or_missing_checksum_is_refused(hub, kept, path, stated, message):
    hub.etags[path] = stated
    with pytest.raises(DataError, match=message):
        download(f"{hub.address}{path}", None, kept)
    assert not kept.exists()


def test_a_checksum_from_another_server_does_not_count(hub, kept):
    hub.etags |= {"/large": None, "/elsewhere/large": f'"{SHA256}"'}
    with pytest.raises(DataError, match="the server states no checksum"):
        download(f"{hub.address}/large", None, kept)


@pytest.mark.parametrize("cuts", [[1], [3_000_000], [1_500_000, 5], [70_000, 70_001, 2_000_000]], ids=str)
def test_a_cut_transfer_goes_on_where_it_was(hub, kept, cuts):
    hub.cuts = list(cuts)
    download(f"{hub.address}/large", None, kept)
    assert kept.read_bytes() == CONTENT
    ranges = [asked for path, asked in hub.asked if path == "/elsewhere/large"]
    assert ranges == [None, *(f"bytes={start}-" for start in itertools.accumulate(cuts))]


def test_a_server_that_sends_all_of_it_again_will_do(hub, kept):
    hub.cuts, hub.resumes = [1_000_000, 2_000_000], False
    download(f"{hub.address}/large", SHA256, kept)
    assert kept.read_bytes() == CONTENT


def test_a_server_that_does_not_get_further_is_given_up(hub, kept):
    hub.cuts, hub.resumes = [1000, 1000, 1000], False
    with pytest.raises(
        DataError, match=rf"large: the connection was cut after 1000 bytes, {len(CONTENT) - 1000} short"
    ):
        download(f"{hub.address}/elsewhere/large", SHA256, kept)
    assert len(hub.asked) == 2
    assert not kept.exists()


def test_a_file_that_the_server_does_not_have_is_an_error_of_its_own(hub, kept):
    with pytest.raises(NotFoundError, match="nothing: the server answered 404 Not Found"):
        download(f"{hub.address}/nothing", None, kept)


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_if_wanted(hub, kept, capfd, progress):
    download(f"{hub.address}/large", None, kept, progress=progress)
    shown = capfd.readouterr().err
    assert ("file: 100%" in shown and "5.12M/5.12M" in shown) == progress
    assert progress or not shown


@pytest.mark.parametrize("states_sizes", [True, False])
def test_a_server_that_sends_more_than_the_known_size_is_cut_off(hub, kept, states_sizes):
    hub.states_sizes = states_sizes
    with pytest.raises(DataError, match="small: the server sends more than the expected 5 bytes"):
        download(f"{hub.address}/small", None, kept, size=5)
    hub.linked_size = 1000  # as the hub says, before the other server is asked
    with pytest.raises(DataError, match="large: the server sends more than the expected 1000 bytes"):
        download(f"{hub.address}/large", None, kept)
    hub.linked_size = None
    download(f"{hub.address}/large", None, kept)
    assert kept.read_bytes() == CONTENT


def test_a_download_has_a_time_limit_however_much_it_says(hub, kept):
    """Each byte comes in time, all of them would take half a minute."""
    hub.files["/slow"], hub.pause = b"x" * 3000, 0.01
    started = time.monotonic()
    with pytest.raises(DataError, match=r"slow: took too long; \d+ bytes arrived"):
        download(f"{hub.address}/slow", None, kept, time_limit=0.3)
    assert time.monotonic() - started < 10
    hub.pause = 0


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_redirect_from_https_to_anything_else_is_refused(scheme):
    """Whoever listens on the way could otherwise answer in the server's place."""
    transfer = Transfer("https://server.example/file", 30.0, None, math.inf)
    redirects = Redirects(transfer)
    request = urllib.request.Request("https://server.example/file")
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://other.example/file") is not None
    with pytest.raises(DataError, match=f"redirects to {scheme}://other.example/file, which is not https"):
        redirects.redirect_request(request, None, 302, "Found", {}, f"{scheme}://other.example/file")
