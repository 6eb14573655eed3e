"""`Control`: notices a rank that fails, dies, stops or hangs, and ends the whole job with one message.

MPI and NCCL wait forever for a rank that never comes. So every rank has a thread that says once a second what its main
thread is doing, over a TCP connection to rank 0, and rank 0 judges (`judge`):

    the connection is lost without a goodbye    the rank died
    nothing is heard for PATIENCE seconds       the rank is stopped, or its machine cannot be reached
    others wait in a collective that a rank has not reached for PATIENCE seconds, or for three times as long as it ever
    took from one collective, or one step, to
    the next                                    the rank hangs
    others wait for a rank that has ended       the rank left too early
    two ranks are in different collectives      they do not run the same program

A rank with an uncaught exception tells rank 0 itself. The first failure is printed by rank 0, and all ranks end with
status 1. If rank 0 is the one that is gone, the others notice, say so and end. The launcher ends what is left.

Messages are lines of JSON. A secret that the ranks share keeps strangers out, but nothing is encrypted: as for MPI and
NCCL themselves, the network between the machines has to be one that is trusted.
"""

from __future__ import annotations

import collections
import contextlib
import hmac
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .communicator import DistributedError

PATIENCE = float(os.environ.get("MINIGRAD_PATIENCE") or 20)  # seconds without a sign of life or of progress
BEAT = min(1.0, PATIENCE / 4)  # seconds between two signs of life
JOINING = 3 * PATIENCE  # seconds for all ranks to connect
STOPPED = max(2.0, 2 * BEAT)  # seconds between two rounds of the thread after which this rank itself was stopped
LEAVING = min(2.0, PATIENCE)  # seconds to wait for a rank that has ended: its last messages may still be on their way


@dataclass
class Progress:
    """What a rank says of itself once a second."""

    started: int = 0  # collectives
    completed: int = 0
    call: str = ""  # the first collective that is not complete
    busy: str = ""  # the label of long work that it announced
    steps: int = 0  # between collectives, of which the rank says that it has made them
    longest: float = 0.0  # seconds from the end of a collective, or a step, to the next, so far
    at: str = ""  # where its main thread is


@dataclass
class Peer:
    """What rank 0 knows of a rank."""

    rank: int
    host: str = ""
    progress: Progress = field(default_factory=Progress)
    heard: float = 0.0  # when it was last heard of
    moved: float = 0.0  # when it last started or completed a collective or a step, or began or ended long work
    lost: bool = False  # its connection
    ended: float | None = None  # when it said goodbye
    how: str = ""  # it ended

    def hear(self, progress: Progress, now: float) -> None:
        before, self.progress, self.heard = self.progress, progress, now
        if any(getattr(before, name) != getattr(progress, name) for name in ("started", "completed", "steps", "busy")):
            self.moved = now

    def waits(self, now: float) -> float:
        """Seconds that it has been waiting in a collective; 0 if it is not in one."""
        return now - self.moved if self.progress.started > self.progress.completed and self.ended is None else 0.0

    def __str__(self) -> str:
        return f"rank {self.rank}" + (f" on {self.host}" if self.host else "")


def judge(peers: list[Peer], now: float, patience: float = PATIENCE) -> str | None:
    """What is wrong with the job, if anything: one line that names a rank."""
    for peer in peers:
        if peer.ended is None and peer.lost:
            return f"{peer} died: its connection was lost"
    for peer in peers:
        if peer.ended is None and now - peer.heard > patience:
            return f"{peer} has not been heard of for {patience:g} s: it is stopped, or its machine cannot be reached"
    waiting = [peer for peer in peers if peer.waits(now)]
    if not waiting:
        return None
    # Those in later collectives wait for this one
    first = min(waiting, key=lambda peer: (peer.progress.completed, peer.moved))
    number, call = first.progress.completed + 1, first.progress.call
    for peer in peers:
        progress = peer.progress
        late = f"after collective {progress.started}; {waits_for(first.rank, number, call)}"
        if peer.waits(now) and progress.completed + 1 == number:
            if progress.call != call and min(peer.waits(now), first.waits(now)) > 2 * BEAT:
                return f"{peer} calls {progress.call} as collective {number}, but rank {first.rank} calls {call}"
        elif progress.started >= number or progress.busy:
            continue
        elif peer.ended is not None:
            if min(now - peer.ended, first.waits(now)) > LEAVING:
                return f"{peer} ended {peer.how}{late}"
        elif min(first.waits(now), now - peer.moved) > max(patience, 3 * progress.longest):
            return (
                f"{peer} hangs: it has made no progress for {now - peer.moved:.0f} s, at {progress.at}, {late}. "
                f"Long work of one rank alone is marked with `with communicator.busy(…)`"
            )
    if len(waiting) == len(peers) and min(peer.waits(now) for peer in peers) > 30 * patience:
        return f"no rank has left collective {number}, {call}, for {30 * patience:g} s"
    return None


def waits_for(rank: int, number: int, call: str) -> str:
    return f"rank {rank} waits for it in collective {number}, {call}"


class Control:
    """This rank's part of the watch. Made by `launch.py`; `Hub` is rank 0's, `Spoke` that of the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.lock = threading.Condition()
        self.progress, self.calls, self.labels = Progress(), collections.deque[str](), list[str]()
        self.idle_since: float | None = time.monotonic()  # since when no collective is under way, unless busy
        self.shares, self.shared = 0, dict[int, list[Any]]()
        self.each_beat: Callable[[], None] = lambda: None  # what else this thread has to look after
        self.status: object = None  # of sys.exit, if that was called
        self.closed = False

    # What this rank does

    def enter(self, call: str) -> None:
        """A collective was started."""
        with self.lock:
            if self.idle_since is not None:
                self.progress.longest = max(self.progress.longest, time.monotonic() - self.idle_since)
            self.idle_since = None
            self.calls.append(call)
            self.progress.started += 1

    def leave(self) -> None:
        """The first of the collectives that were started is complete."""
        with self.lock:
            self.calls.popleft()
            self.progress.completed += 1
            if not self.calls and not self.labels:
                self.idle_since = time.monotonic()

    @contextlib.contextmanager
    def inside(self, call: str) -> Iterator[None]:
        """A context for what all ranks do together and wait for, as in a collective."""
        self.enter(call)
        yield
        self.leave()

    def made_progress(self) -> None:
        """See `Communicator.made_progress`."""
        with self.lock:
            self.progress.steps += 1
            if self.idle_since is not None:
                now = time.monotonic()
                self.progress.longest = max(self.progress.longest, now - self.idle_since)
                self.idle_since = now

    @contextlib.contextmanager
    def busy(self, label: str) -> Iterator[None]:
        """See `Communicator.busy`."""
        with self.lock:
            self.labels.append(label)
            self.idle_since = None
        try:
            yield
        finally:
            with self.lock:
                self.labels.pop()
                if not self.calls and not self.labels:
                    self.idle_since = time.monotonic()

    def now_at(self) -> Progress:
        """What the next sign of life says."""
        self.each_beat()
        with self.lock:
            self.progress.call = self.calls[0] if self.calls else ""
            self.progress.busy = self.labels[-1] if self.labels else ""
            self.progress.at = position_of_main_thread()
            return Progress(**vars(self.progress))

    def share(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, such as JSON can hold."""
        with self.inside("share"), self.lock:
            self.shares += 1
            number = self.shares
            self.offer(number, value)
            self.lock.wait_for(lambda: number in self.shared)
            return self.shared.pop(number)

    def offer(self, number: int, value: Any) -> None:
        """Send this rank's value of share `number`. The thread puts all ranks' into `shared`."""
        raise NotImplementedError

    def fail(self, reason: str) -> NoReturn:
        """End all ranks with status 1. The message names this rank and the reason."""
        raise NotImplementedError

    def say_goodbye(self) -> None:
        raise NotImplementedError

    # Beginning and end of the program

    def in_forks(self, close: Callable[[], None]) -> None:
        """Close the sockets in processes that are forked from this one. Open there, they would outlive this rank."""
        if sys.platform != "win32":
            os.register_at_fork(after_in_child=close)

    def watch(self) -> None:
        """Start the thread, and report what nobody catches."""
        before, exit_before = threading.excepthook, sys.exit

        def in_thread(failed: threading.ExceptHookArgs) -> None:
            if failed.exc_type is not SystemExit and not self.closed and failed.exc_value is not None:
                self.fail(_description(failed.exc_value))
            before(failed)

        def exit_with(status: Any = None) -> NoReturn:
            self.status = status  # the interpreter tells nobody what it ends with
            exit_before(status)

        sys.excepthook = lambda kind, error, trace: self.fail(_description(error))
        threading.excepthook, sys.exit = in_thread, exit_with
        threading.Thread(target=self._watch, name="control", daemon=True).start()

    def _watch(self) -> None:
        try:
            self.run()
        except BaseException as error:
            print(f"error: rank {self.rank}: control failed: {_description(error)}", file=sys.stderr, flush=True)
            os._exit(1)

    def run(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Say goodbye: the others need not wait for this rank any more."""
        with self.lock:
            first, self.closed = not self.closed, True
        if first:
            self.say_goodbye()

    @property
    def how_it_ends(self) -> str:
        if self.status in (None, 0):
            return ""
        return f"with status {self.status} " if isinstance(self.status, int) else f'with the message "{self.status}" '


class Hub(Control):
    """Rank 0's part: it listens, judges, and ends the job."""

    def __init__(self, size: int, listener: socket.socket, token: str) -> None:
        super().__init__(0, size)
        self.listener, self.token = listener, token
        _allow_files(size)
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.peers = {0: Peer(0, socket.gethostname())}
        self.lines: dict[int, Lines] = {}
        self.offered: dict[int, dict[int, Any]] = collections.defaultdict(dict)
        self.deadline, self.over = time.monotonic() + JOINING, False
        # When this rank was last continued after a stop, and for how long it had been stopped
        self.stopped = 0.0, 0.0
        self.in_forks(self.close_sockets)
        self.watch()
        with self.lock:
            self.lock.wait_for(lambda: len(self.peers) == size)

    def close_sockets(self) -> None:
        """Close all connections, without a goodbye."""
        for lines in self.lines.values():
            lines.socket.close()
        self.listener.close()
        self.selector.close()

    def run(self) -> None:
        before = next_beat = time.monotonic()
        while not self.over:
            for key, _ in self.selector.select(BEAT / 4):
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._receive(key.data)
            mine, now = self.now_at(), time.monotonic()
            with self.lock:
                if now - before > STOPPED:  # this rank itself was stopped, and so heard of nobody
                    self.stopped = now, now - before
                    for peer in self.peers.values():
                        peer.heard, peer.moved = peer.heard + now - before, peer.moved + now - before
                before = now
                self.peers[0].hear(mine, now)
                if now >= next_beat:
                    next_beat = now + BEAT
                    self._send_all({"beat": True})
                reason = self._missing(now) or judge(list(self.peers.values()), now)
            if reason:
                self.end(reason)

    def _missing(self, now: float) -> str | None:
        if len(self.peers) < self.size and now > self.deadline:
            missing = ", ".join(str(rank) for rank in range(self.size) if rank not in self.peers)
            return f"rank {missing} has not connected to rank 0 within {JOINING:g} s"
        return None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            self.selector.register(connection, selectors.EVENT_READ, Lines(connection))

    def _receive(self, lines: Lines) -> None:
        messages = lines.receive(limit=1 << 30 if lines.rank is not None else 1 << 12)
        for message in messages or []:
            with self.lock:
                self._handle(lines, message)
        if messages is None or lines.refused:
            self.selector.unregister(lines.socket)
            lines.socket.close()
            with self.lock:
                if lines.rank is not None:
                    self.peers[lines.rank].lost = True
                    del self.lines[lines.rank]

    def _handle(self, lines: Lines, message: dict[str, Any]) -> None:
        now = time.monotonic()
        if lines.rank is None:
            token, rank = str(message.get("token")), message.get("rank")
            known = hmac.compare_digest(token.encode(), self.token.encode())
            if not known or not isinstance(rank, int) or not 0 < rank < self.size or rank in self.peers:
                lines.refused = True
                return
            lines.rank = rank
            self.lines[rank] = lines
            self.peers[rank] = Peer(rank, str(message.get("host")), heard=now, moved=now)
            lines.send({"welcome": True})
            self.lock.notify_all()
        peer = self.peers[lines.rank]
        peer.heard = now
        if "progress" in message:
            peer.hear(Progress(**message["progress"]), now)
        if "share" in message:
            self._collect(message["share"], lines.rank, message["value"])
        if "bye" in message:
            peer.ended, peer.how = now, message["bye"]
        if "failed" in message:
            self.end(f"{peer}: {message['failed']}")

    def offer(self, number: int, value: Any) -> None:
        with self.lock:
            self._collect(number, 0, json.loads(json.dumps(value)))

    def _collect(self, number: int, rank: int, value: Any) -> None:
        self.offered[number][rank] = value
        if len(self.offered[number]) == self.size:
            offered = self.offered.pop(number)
            self.shared[number] = [offered[rank] for rank in range(self.size)]
            self._send_all({"share": number, "values": self.shared[number]})
            self.lock.notify_all()

    def _send_all(self, message: dict[str, Any]) -> None:
        for lines in list(self.lines.values()):
            lines.send(message)

    def fail(self, reason: str) -> NoReturn:
        self.end(f"{self.peers[0]}: {reason}")

    def end(self, reason: str) -> NoReturn:
        """Print the first failure, and end all ranks."""
        with self.lock:
            first, self.over = not self.over, True
            when, duration = self.stopped
            others_said_it = duration > PATIENCE / 2 and time.monotonic() - when < PATIENCE
            if first and not others_said_it:
                _print(f"error: {reason}")
            if first:
                self._send_all({"end": reason})
        if not first:
            time.sleep(60)  # the thread that was first ends this process
        time.sleep(min(0.5, PATIENCE))  # for the others to read it before the launcher ends them
        os._exit(1)

    def say_goodbye(self) -> None:
        with self.lock:
            self.peers[0].ended, self.peers[0].how = time.monotonic(), self.how_it_ends
            self._send_all({"bye": self.how_it_ends, "last": self.progress.started})


class Spoke(Control):
    """The part of a rank that is not rank 0. addresses: where rank 0 may listen."""

    def __init__(self, rank: int, size: int, addresses: list[tuple[str, int]], token: str) -> None:
        super().__init__(rank, size)
        self.lines = join(rank, addresses, token)
        self.heard = time.monotonic()
        self.last_of_hub: tuple[int, str] | None = None  # its last collective, and how it ended
        self.in_forks(self.lines.socket.close)
        self.watch()

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self.lines.socket, selectors.EVENT_READ)
        before = next_beat = time.monotonic()
        for message in self.lines.early:
            self._handle(message, before)
        while self.last_of_hub is None:
            messages: list[dict[str, Any]] | None = []
            if selector.select(BEAT / 4):
                messages = self.lines.receive()
            now = time.monotonic()
            if now - before > STOPPED:  # this rank itself was stopped
                self.heard += now - before
            before = now
            for message in messages or []:
                self._handle(message, now)
            if now >= next_beat:
                next_beat = now + BEAT
                self.lines.send({"progress": vars(self.now_at())})
            if self.last_of_hub is not None:
                break
            if messages is None:
                self._rank_0_is_gone("died: its connection was lost")
            if now - self.heard > PATIENCE:
                self._rank_0_is_gone(
                    f"has not been heard of for {PATIENCE:g} s: it is stopped, or its machine cannot be reached"
                )
        last, how = self.last_of_hub
        while True:  # rank 0 has ended, and this rank must not wait for it
            then = self.now_at()
            time.sleep(LEAVING)
            now_at = self.now_at()
            if then.call and now_at.completed == then.completed >= last:
                self._rank_0_is_gone(
                    f"ended {how}after collective {last}; {waits_for(self.rank, then.completed + 1, then.call)}"
                )

    def _handle(self, message: dict[str, Any], now: float) -> None:
        self.heard = now
        if "share" in message:
            with self.lock:
                self.shared[message["share"]] = message["values"]
                self.lock.notify_all()
        if "bye" in message:
            self.last_of_hub = message["last"], message["bye"]
        if "end" in message:
            _flush()
            os._exit(1)

    def _rank_0_is_gone(self, how: str) -> NoReturn:
        """Say it, on the lowest rank that is left: its end lets the launcher end the others before they say it too."""
        time.sleep(min(self.rank - 1, 10))
        if not self.closed:
            _print(f"error: rank 0 {how}")
        os._exit(1)

    def offer(self, number: int, value: Any) -> None:
        self.lines.send({"share": number, "value": value})

    def fail(self, reason: str) -> NoReturn:
        if self.last_of_hub is not None or not self.lines.send({"failed": reason}):
            _print(f"error: rank {self.rank}: {reason}")
        else:
            time.sleep(min(5.0, PATIENCE))  # rank 0 ends this process
        _flush()
        os._exit(1)

    def say_goodbye(self) -> None:
        self.lines.send({"progress": vars(self.now_at()), "bye": self.how_it_ends})


class Lines:
    """A connection over which lines of JSON go."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.received = connection, b""
        self.early: list[dict[str, Any]] = []  # messages that came together with the welcome
        self.rank: int | None = None  # of the other end, once it has said the secret
        self.refused = False
        self.sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message. Returns whether the connection took it."""
        try:
            with self.sending:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, limit: int = 1 << 30) -> list[dict[str, Any]] | None:
        """The messages that have arrived, after waiting for the first bytes; None if the connection is closed."""
        try:
            received = self.socket.recv(1 << 16)
        except OSError:
            return None
        *lines, self.received = (self.received + received).split(b"\n")
        if not received or len(self.received) > limit:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None


def join(rank: int, addresses: list[tuple[str, int]], token: str) -> Lines:
    """Connect to rank 0 at one of these addresses. Raises `DistributedError` if none answers."""
    deadline, said = time.monotonic() + JOINING, "nothing answers"
    while time.monotonic() < deadline:
        for host, port in addresses:
            try:
                lines = Lines(socket.create_connection((host, port), timeout=5))
            except OSError as error:
                said = str(error)
                continue
            lines.send({"token": token, "rank": rank, "host": socket.gethostname()})
            with contextlib.suppress(OSError):
                welcome, *lines.early = lines.receive() or [{}]
                if welcome.get("welcome"):
                    return lines
            lines.socket.close()
        time.sleep(min(0.2, BEAT))
    tried = ", ".join(f"{host}:{port}" for host, port in addresses[:4])
    raise DistributedError(f"rank {rank} on {socket.gethostname()} cannot reach rank 0 at {tried}: {said}")


def _allow_files(count: int) -> None:
    """Let this process have a connection to each of `count` ranks, if the system lets it."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = count + 1024
        if soft != resource.RLIM_INFINITY and soft < needed:
            most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def position_of_main_thread() -> str:
    """Where the main thread is: "train.py:12 in main"."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "its end"
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}"


def _description(error: BaseException) -> str:
    """The error in one line, and below it where it was raised, unless the line is meant for the user."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, DistributedError):
        return str(error)
    line = traceback.format_exception_only(error)[-1].strip()
    return line + "\n" + "".join(traceback.format_exception(error)).rstrip()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _print(message: str) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        print(message, file=sys.stderr, flush=True)
