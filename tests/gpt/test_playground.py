"""The playground's server: what it computes, whom it answers, and that no page can block it."""

import base64
import contextlib
import importlib.util
import json
import socket
import time

import numpy as np
import pytest

from gpt import checkpoint
from gpt.sample import Sampling, stream
from minigrad import functional as F
from tests.gpt.playground_server import (
    TEXT,
    ask,
    events,
    ids_of,
    listen,
    log_probability,
    send,
    server,
    serving,
    small_gpt,
    small_model,
    wait_until,
)
from tests.programs import run_program

PROMPT = "the lazy fox jumps over"  # longer than the model's context


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def port(model):
    with serving([model]) as port:
        yield port


def unpacked(content, *shape):
    return np.frombuffer(base64.b64decode(content), "<f4").reshape(*shape, -1)


# What it computes


def test_a_prediction_is_that_of_the_engine(port, model):
    ids = ids_of(PROMPT)
    seen = np.array(ids[-16:])
    status, found = ask(port, "/look", {"model": 0, "ids": ids})
    assert status == 200
    assert found["seen"] == 16
    logits = model.model.next_logits(seen[None]).numpy()[0]
    np.testing.assert_allclose(unpacked(found["logits"]), logits, atol=1e-6)
    assert found["target"]["id"] == logits.argmax()
    assert [token["id"] for token in found["likeliest"]] == np.argsort(-logits)[:12].tolist()
    weights = [layer.numpy()[0, :, -1] for layer in model.model.attention_weights(seen[None])]
    np.testing.assert_allclose(unpacked(found["attention"], 2, 2), weights, atol=1e-6)
    p = F.softmax(model.model.next_logits(seen[None])).numpy()[0]
    assert found["lens"][-1]["target"] == pytest.approx(p.max(), abs=1e-6)
    assert len(found["lens"]) == 3


def test_a_layer_predicts_what_the_model_without_the_layers_after_it_would(model):
    seen = np.array(ids_of("the lazy"))
    found = model.explain(seen)
    for kept in range(3):
        shallow = small_gpt()
        shallow.h = type(shallow.h)(list(shallow.h)[:kept])
        np.testing.assert_allclose(found.lens[kept], F.softmax(shallow.next_logits(seen[None])).numpy()[0], atol=1e-6)


@pytest.mark.parametrize("target", [None, 5])
@pytest.mark.parametrize("options", [{}, {"position": "rotary", "norm": "rms", "logit_softcap": 5.0}])
def test_the_influence_of_a_token_is_the_derivative_when_its_embedding_grows(options, target):
    model = small_model(**options)
    model.model.to(dtype="float64")
    seen, step = np.array(ids_of("lazy dog")), 1e-6
    found = model.explain(seen, target)
    embedded = model.model.embed(seen[None])[0].numpy()
    for i, influence in enumerate(found.influence):
        grown, shrunk = embedded.copy(), embedded.copy()
        grown[:, i] *= 1 + step
        shrunk[:, i] *= 1 - step
        change = log_probability(model.model, grown, found.target) - log_probability(model.model, shrunk, found.target)
        assert influence == pytest.approx(change / (2 * step), rel=1e-6, abs=1e-8)


def test_tokens_have_their_texts(port):
    assert ask(port, "/tokens", {"model": 0, "text": "a fox"}) == (
        200,
        {"tokens": [{"id": token, "text": text} for token, text in zip(ids_of("a fox"), "a fox", strict=True)]},
    )


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"temperature": 0}])
def test_the_adjusted_logits_are_those_that_tokens_are_drawn_from(options):
    logits = np.random.default_rng(0).normal(0, 2, (1, 12)).astype(np.float32)
    how, rng = Sampling(**options), np.random.default_rng(1)
    drawn = np.bincount(how.choose(logits.repeat(4000, axis=0), rng), minlength=12) / 4000
    p = F.softmax(how.adjusted(logits)).numpy()[0] if how.temperature else np.eye(12)[logits[0].argmax()]
    np.testing.assert_allclose(drawn, p, atol=0.03)
    assert not drawn[p == 0].any()


def test_the_tokens_are_those_of_the_program_sample(port, model, tmp_path, capsys):
    checkpoint.save(tmp_path / "best.safetensors", model.model, FakeOptimizer(), model.tokenizer, {})
    options = {"temperature": 0.9, "top_k": 9, "top_p": 0.95, "seed": 7}
    status, content = ask(port, "/generate", {"model": 0, "ids": ids_of("the"), "length": 30, **options})
    assert status == 200
    *tokens, end = events(content)
    assert end == {"end": True}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    run_program("sample", "--checkpoint", tmp_path, "--prompt", "the", "--max-new-tokens", 30, *given)
    assert capsys.readouterr().out == "the" + "".join(token["text"] for token in tokens) + "\n"


class FakeOptimizer:
    """What `checkpoint.save` asks of an optimizer."""

    def masters(self):
        return {}

    def state_dict(self):
        return {}


# Whom it answers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9999"}, 200),  # through a tunnel
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:80:80"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_hosts_and_origins_are_refused(port, headers, status):
    given = {name: value.format(port=port) for name, value in headers.items()}
    for path, body in (("/models", None), ("/look", {"model": 0, "ids": [1]})):
        got, content = ask(port, path, body, **given)
        assert got == status
        if status == 403:
            assert content.count("\n") == 1
            assert "this server answers" in content


def test_a_form_of_another_page_cannot_post(port):
    status, content = ask(port, "/look", b"{}", Content_Type="text/plain")
    assert (status, content) == (403, "Content-Type: expected application/json\n")


def test_every_answer_forbids_what_the_page_does_not_need(port):
    for path in ("/", "/page.js", "/models", "/missing"):
        with contextlib.closing(send(port, path)) as connection:
            headers = connection.getresponse().headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_only_this_machine_is_listened_to():
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


# Bad input


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/tokens", {"model": 0, "text": "ÿ"}, 400, "the character 'ÿ' at position 0 is not in the vocabulary"),
        ("/tokens", {"model": 0}, 400, "text is None; expected a str"),
        ("/tokens", {"model": 0, "text": "a" * 2001}, 400, "2,001 tokens; the page takes at most 2,000"),
        ("/tokens", {"model": 0, "text": "a" * 20_001}, 400, "20,001 characters"),
        ("/tokens", {"model": 0, "text": "\ud800"}, 400, "not in the vocabulary"),
        ("/look", {"model": 1, "ids": [1]}, 400, "model is 1; expected a number from 0 to 0"),
        ("/look", {"model": True, "ids": [1]}, 400, "model is True"),
        ("/look", {"model": 0, "ids": []}, 400, "at least one"),
        ("/look", {"model": 0, "ids": [28]}, 400, "numbers from 0 to 27"),
        ("/look", {"model": 0, "ids": [1.0]}, 400, "numbers from 0 to 27"),
        ("/look", {"model": 0, "ids": [1], "target": -1}, 400, "numbers from 0 to 27"),
        ("/look", {"model": 0, "ids": [1], "target": "a"}, 400, "numbers from 0 to 27"),
        ("/look", b"{", 400, "expected JSON"),
        ("/look", b"[1]", 400, "expected a JSON object"),
        ("/look", b"[" * 100_000, 400, "expected JSON"),
        ("/look", b" " * 1_000_001, 413, "at most 1,000,000 bytes"),
        ("/generate", {"model": 0, "ids": [1], "length": 0}, 400, "length is 0"),
        ("/generate", {"model": 0, "ids": [1], "length": 2001}, 400, "at most 2000"),
        ("/generate", {"model": 0, "ids": [1], "length": 1, "temperature": "hot"}, 400, "temperature is 'hot'"),
        ("/generate", {"model": 0, "ids": [1], "length": 1, "top_k": 0}, 400, "top_k is 0"),
        ("/generate", {"model": 0, "ids": [1], "length": 1, "top_p": 2}, 400, "top_p is 2"),
        ("/generate", {"model": 0, "ids": [1], "length": 1, "seed": -1}, 400, "seed is -1"),
        ("/run", None, 404, "no run is followed"),
        ("/../secrets", None, 404, "Not Found"),
    ],
)
def test_bad_input_is_one_line(port, path, body, status, message):
    got, content = ask(port, path, body)
    assert got == status
    assert message in content["error"]
    assert "\n" not in content["error"]


def test_weights_that_have_diverged_are_one_line():
    model = small_model()
    model.model.ln_f.weight.data[...] = np.nan
    tokens = model.continuation(np.array([1]), 5, {"temperature": 1.0})
    with pytest.raises(ValueError, match="the model has diverged"):
        model.next_token(tokens)


# No page can block it


class Counting:
    """How often a model computes the logits of a next token."""

    def __init__(self, model, monkeypatch):
        self.calls, computed = 0, model.model.next_logits

        def counted(*args, **options):
            self.calls += 1
            return computed(*args, **options)

        monkeypatch.setattr(model.model, "next_logits", counted)


def test_when_the_page_is_closed_the_writing_ends(port, model, monkeypatch):
    counting = Counting(model, monkeypatch)
    connection = send(port, "/generate", {"model": 0, "ids": [1], "length": 2000})
    with contextlib.closing(connection), connection.getresponse() as answer:
        assert answer.readline().startswith(b"data")
    before = -1
    while counting.calls != before:
        before = counting.calls
        wait_until(lambda: ask(port, "/look", {"model": 0, "ids": [1]})[0] == 200)
        time.sleep(0.15)
    assert counting.calls < 1900


def test_a_page_that_receives_nothing_blocks_no_other_and_is_given_up(port, model, monkeypatch):
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    monkeypatch.setattr(server, "event", lambda content: f"data: {json.dumps(content)}{' ' * 100_000}\n\n")
    counting = Counting(model, monkeypatch)
    hung = [send(port, "/generate", {"model": 0, "ids": [1], "length": 2000}) for _ in range(3)]
    wait_until(lambda: counting.calls > 3)
    assert ask(port, "/look", {"model": 0, "ids": [1]})[0] == 200
    status, content = ask(port, "/generate", {"model": 0, "ids": [1], "length": 3})
    assert len(events(content)) == 4
    time.sleep(0.4)
    before = counting.calls
    time.sleep(0.2)
    assert counting.calls == before < 1900
    for connection in hung:
        connection.close()
    for _ in range(3):
        ask(port, "/models")  # by now the server has noticed


def test_two_pages_that_write_at_once_get_the_tokens_that_each_gets_alone(port, model):
    requests = [{"model": 0, "ids": ids_of("the"), "length": 40, "seed": seed} for seed in (1, 2)]
    connections = [send(port, "/generate", request) for request in requests]
    for request, connection in zip(requests, connections, strict=True):
        tokens = [event["id"] for event in events(connection.getresponse().read().decode())[:-1]]
        alone = stream(model.model, np.array(ids_of("the"))[None], 40, seed=request["seed"])
        assert tokens == [int(token[0]) for token in alone]
        connection.close()


# The program


def test_without_the_extra_the_program_names_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    assert run_program("playground") == (
        'error: the page needs uvicorn, of the extra "playground": pip install -e ".[playground]"'
    )


def test_a_port_that_is_taken_is_one_line(tmp_path):
    checkpoint.save(tmp_path / "best.safetensors", small_gpt(), FakeOptimizer(), small_model().tokenizer, {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = run_program("playground", "--checkpoint", tmp_path, "--port", port, "--no-browser")
    assert message == f"error: port {port}: Address already in use; expected a free one"


def test_the_text_of_the_tests_has_a_vocabulary():
    assert len(ids_of(TEXT)) == len(TEXT)
