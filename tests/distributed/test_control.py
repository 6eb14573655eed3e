"""What rank 0 concludes from what it hears, and who may connect to it."""

import contextlib
import json
import re
import socket
import threading
import time

import pytest

from minigrad.distributed import DistributedError, control
from minigrad.distributed.control import Peer, Progress, judge

NOW = 1000.0


def peer(rank, started=5, completed=5, call="", *, heard=0.5, moved=0.5, ended=None, how="", **said):
    """A rank that was heard of `heard` seconds ago, and made progress `moved` seconds ago."""
    progress = Progress(started, completed, call, at="train.py:12 in main", **said)
    left = None if ended is None else NOW - ended
    return Peer(rank, "node", progress, NOW - heard, NOW - moved, ended=left, how=how)


def waiting(rank, seconds, call="all_reduce of 8 float32 (sum)"):
    return peer(rank, 6, 5, call, moved=seconds)


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ([peer(0), peer(1)], None),
        ([peer(0), peer(1, heard=19)], None),
        ([peer(0), peer(1, heard=21)], "^rank 1 on node has not been heard of for 20 s: it is stopped"),
        ([peer(0), peer(1, heard=21, ended=30)], None),
        ([waiting(0, 19), peer(1, moved=30)], None),
        ([waiting(0, 30), peer(1, moved=19)], None),  # it has just come out of the collective before
        (
            [waiting(0, 21), peer(1, moved=25)],
            "^rank 1 on node hangs: .* for 25 s, at train.py:12 in main, after "
            r"collective 5; rank 0 waits for it in collective 6, all_reduce of 8",
        ),
        ([waiting(0, 21), peer(1, moved=25, busy="saving")], None),
        ([waiting(0, 100), peer(1, moved=100, longest=40.0)], None),  # its steps are long
        ([waiting(0, 121), peer(1, moved=121, longest=40.0)], "rank 1 on node hangs"),
        ([waiting(0, 1), peer(1, ended=1)], None),
        (
            [waiting(0, 3), peer(1, ended=3, how="with status 2 ")],
            "^rank 1 on node ended with status 2 after collective 5",
        ),
        ([waiting(0, 3), peer(1, started=6, completed=6, ended=3)], None),  # it has done its part of this one
        ([waiting(0, 1), waiting(1, 1, "barrier")], None),
        (
            [waiting(0, 3), waiting(1, 3, "barrier")],
            "^rank 1 on node calls barrier as collective 6, but rank 0 calls all_r",
        ),
        ([waiting(0, 599), waiting(1, 700)], None),
        (
            [waiting(0, 601), waiting(1, 700)],
            r"^no rank has left collective 6, all_reduce of 8 float32 \(sum\), for 600 s",
        ),
    ],
)
def test_what_rank_0_concludes(peers, expected):
    said = judge(peers, NOW, patience=20)
    assert (said is None) == (expected is None), said
    if expected:
        assert re.search(expected, said)


def test_a_lost_connection():
    lost = peer(1)
    lost.lost = True
    assert judge([peer(0), lost], NOW) == "rank 1 on node died: its connection was lost"
    lost.ended = NOW
    assert judge([peer(0), lost], NOW) is None


def test_progress_is_what_was_started_completed_or_announced():
    one = peer(1, moved=50)
    one.hear(Progress(5, 5), NOW)
    assert one.moved == NOW - 50
    one.hear(Progress(6, 5), NOW + 1)
    one.hear(Progress(6, 5), NOW + 2)
    assert one.moved == NOW + 1
    one.hear(Progress(6, 5, busy="saving"), NOW + 3)
    assert (one.moved, one.heard, one.waits(NOW + 5)) == (NOW + 3, NOW + 3, 2)
    one.hear(Progress(6, 5, busy="saving", steps=1), NOW + 4)
    assert one.moved == NOW + 4


class Hub(control.Hub):
    """Rank 0 of 2, as a thread that notes what it would end the job for."""

    def __init__(self, listener):
        self.said = []
        super().__init__(2, listener, "secret")

    def in_forks(self, close):
        pass

    def watch(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def end(self, reason):
        self.said.append(reason)

    def stop(self):
        self.over = True
        self.thread.join()
        self.close_sockets()


@pytest.fixture
def address():
    """Where rank 0 listens; the second value is called for rank 0 when rank 1 has joined."""
    listener, made = socket.create_server(("127.0.0.1", 0)), []
    thread = threading.Thread(target=lambda: made.append(Hub(listener)))
    thread.start()

    def joined():
        thread.join()
        return made[0]

    yield listener.getsockname(), joined
    joined().stop()


def test_strangers_are_turned_away(address):
    """Whatever they send, the connection is closed, and the rank that knows the secret still gets in."""
    address, joined = address
    for said in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"[]\n",
        b"\xff\xfe\n",
        b"x" * 10_000,
        json.dumps({"token": "guess", "rank": 1}).encode() + b"\n",
        json.dumps({"token": "secret", "rank": 0}).encode() + b"\n",
        json.dumps({"token": "secret", "rank": 7}).encode() + b"\n",
        json.dumps({"token": None, "failed": "all of them"}).encode() + b"\n",
    ):
        with socket.create_connection(address) as stranger:
            stranger.sendall(said)
            stranger.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(100) == b"", said
    lines = control.join(1, [address], "secret")
    hub = joined()
    lines.send({"share": 1, "value": {"loss": 2.5}})
    assert hub.share([1, None]) == [[1, None], {"loss": 2.5}]
    assert not hub.said
    lines.send({"failed": "a test"})
    wait_for(lambda: hub.said)
    assert re.fullmatch(r"rank 1 on \S+: a test", hub.said[0])
    lines.socket.close()


def test_a_rank_that_leaves_with_and_without_a_goodbye(address):
    address, joined = address
    lines = control.join(1, [address], "secret")
    hub = joined()
    lines.send({"bye": ""})
    lines.socket.close()
    wait_for(lambda: hub.peers[1].lost)
    time.sleep(2 * control.BEAT)
    assert not hub.said
    hub.peers[1].ended = None
    wait_for(lambda: hub.said)
    assert re.fullmatch(r"rank 1 on \S+ died: its connection was lost", hub.said[0])


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rank_0_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(control, "JOINING", 0.5)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(
            DistributedError, match=rf"^rank 3 on .* cannot reach rank 0 at 127.0.0.1:{port}: .*refused"
        ):
            control.join(3, [("127.0.0.1", port)], "secret")


def test_messages_that_come_with_the_welcome_are_kept():
    """Rank 0 may end the job as soon as all are connected."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def welcome():
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 12)
                connection.sendall(b'{"welcome": true}\n{"end": "a test"}\n')

        thread = threading.Thread(target=welcome)
        thread.start()
        lines = control.join(1, [server.getsockname()[:2]], "secret")
        thread.join()
        lines.socket.close()
    assert lines.early == [{"end": "a test"}]
