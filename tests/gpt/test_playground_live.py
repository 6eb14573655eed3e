"""Following a run while it trains: what is read from its files, and the process that shows it."""

import os
import socket

import numpy as np
import pytest

from gpt import checkpoint
from gpt.run import keep_previous_run
from tests.gpt.playground_server import ask, events, send, serving, wait_until
from tests.gpt.runs import new_trainer, without_speed
from tests.programs import run_program

live = pytest.importorskip("playground.live")


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch):
    monkeypatch.setattr(live, "SAMPLE_TOKENS", 10)


def train(out, steps, follower=None):
    """Train to this step, and look after each estimate of the losses."""
    trainer = new_trainer(out, max_iters=steps, eval_interval=5, processes=1)
    if (out / "last.safetensors").exists():
        trainer.resume(checkpoint.load_last(out))
    if follower is not None:
        save = trainer.save_last

        def save_and_look():
            save()
            follower.look()

        trainer.save_last = save_and_look
    trainer.train()
    return trainer


def steps(follower):
    return [estimate["step"] for estimate in follower.estimates]


def test_rows_and_estimates_are_those_of_the_run(tmp_path):
    follower = live.Follower(tmp_path)
    follower.look()  # before there is anything
    assert (follower.rows, follower.estimates, follower.model) == ([], [], None)
    trainer = train(tmp_path, 10, follower)
    assert follower.rows == trainer.rows
    assert steps(follower) == [0, 5, 10]
    last = follower.estimates[-1]
    ids = trainer.tokenizer.encode("".join(last["labels"]))
    assert len(ids) == 16  # as many as the model sees
    weights = [layer.numpy()[0] for layer in trainer.model.attention_weights(ids[None])]
    np.testing.assert_array_equal(last["attention"], weights)
    assert len(last["sample"]) == live.SAMPLE_TOKENS
    assert follower.model.name == f"{tmp_path}, step 10"


def test_a_resumed_run_goes_on(tmp_path):
    follower = live.Follower(tmp_path)
    train(tmp_path, 5, follower)
    trainer = train(tmp_path, 15, follower)
    assert without_speed(follower.rows) == without_speed(trainer.rows)
    assert steps(follower) == [0, 5, 10, 15]


def test_a_run_that_goes_back_loses_what_came_after(tmp_path):
    follower = live.Follower(tmp_path)
    trainer = train(tmp_path, 10, follower)
    version = follower.version
    trainer.metrics.rows = [row for row in trainer.rows if row["iteration"] <= 5]
    trainer.metrics.start()
    follower.look()
    assert follower.rows == trainer.rows
    assert steps(follower) == [0, 5]
    assert follower.version == version + 1


def test_another_run_in_the_folder_begins_anew(tmp_path):
    follower = live.Follower(tmp_path)
    train(tmp_path, 5, follower)
    keep_previous_run(tmp_path)
    follower.look()
    trainer = new_trainer(tmp_path, max_iters=5)
    trainer.metrics.start()
    follower.look()
    assert (follower.rows, follower.estimates) == ([], [])


def test_half_a_row_waits_for_its_other_half(tmp_path):
    follower = live.Follower(tmp_path)
    train(tmp_path, 1, follower)
    before = list(follower.rows)
    with open(tmp_path / "metrics.csv", "ab") as file:
        file.write(b"2,1.5,0.0")
        file.flush()
        follower.look()
        assert follower.rows == before
        file.write(b"01,2.5,100.0,,\r\n")
    follower.look()
    row = {"iteration": 2, "loss": 1.5, "learning_rate": 0.001, "grad_norm": 2.5, "tokens_per_second": 100}
    assert follower.rows == [*before, row]


def test_a_checkpoint_that_cannot_be_read_is_left_out(tmp_path):
    follower = live.Follower(tmp_path)
    train(tmp_path, 1, follower)
    (tmp_path / "last.safetensors").write_bytes(b"damaged")
    follower.look()
    assert steps(follower) == [0, 1]


def test_the_page_gets_what_there_is_and_then_what_is_new(tmp_path):
    follower = live.Follower(tmp_path)
    with serving([], follower) as port:
        assert ask(port, "/models")[1]["models"] == []
        train(tmp_path, 5, follower)
        assert [model["name"] for model in ask(port, "/models")[1]["models"]] == [f"{tmp_path}, step 5"]
        connection = send(port, "/run")
        with connection.getresponse() as answer:
            first = events("".join(answer.readline().decode() for _ in range(6)))
            assert first[0]["rows"] == follower.rows
            assert [event["estimate"]["step"] for event in first[1:]] == [0, 5]
            train(tmp_path, 10, follower)
            lines = iter(lambda: answer.readline().decode(), "")
            new = next(event for line in lines for event in events(line) if event.get("estimate", {}).get("step") == 10)
            assert new["estimate"]["labels"] == follower.estimates[-1]["labels"]
        connection.close()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_the_process_shows_the_run_and_ends_with_it(tmp_path, capfd):
    train(tmp_path, 1)
    capfd.readouterr()
    port = free_port()

    def answer():
        try:
            return ask(port, "/models")[1]["models"]
        except OSError:
            return []

    with live.shown(tmp_path, port):
        assert capfd.readouterr().out == f"live        http://127.0.0.1:{port}\n"
        wait_until(answer, seconds=60)
        assert answer()[0]["name"] == f"{tmp_path}, step 1"
    with pytest.raises(OSError, match="refused"):
        ask(port, "/models")
    assert capfd.readouterr() == ("", "")


def test_the_process_ends_when_the_training_is_killed(tmp_path, monkeypatch):
    class Ended(BaseException):
        pass

    def end(status):
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(live.time, "sleep", lambda seconds: monkeypatch.setattr(os, "getppid", lambda: 1))
    follower = live.Follower(tmp_path, os.getppid())
    with pytest.raises(Ended):
        follower._follow()


def test_a_run_without_the_page_has_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(live.subprocess, "Popen", None)
    with live.shown(tmp_path, None):
        pass


def test_a_port_that_is_taken_stops_a_run_before_it_begins(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = run_program("train_shakespeare", "--live", port, "--out", tmp_path / "out")
    assert message == f"error: port {port}: Address already in use; expected a free one"
    assert not (tmp_path / "out").exists()
