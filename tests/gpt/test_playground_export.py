"""The page with the model inside: what it contains, and what is refused. tests/browser has it compute."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest

from gpt import GPT, BPETokenizer, CharTokenizer, ConfigError, GPTConfig, checkpoint
from gpt.config import PRESETS
from gpt.options import fields_of, pick
from playground import export
from playground.analysis import Model
from tests.programs import run_program

CHARACTERS = CharTokenizer("\n abcdefghijklmnopqrstuvwxyz")


def gpt(tokenizer=CHARACTERS, **options):
    shape = {"block_size": 8, "vocab_size": tokenizer.vocab_size, "n_layer": 1, "n_head": 1, "n_embd": 4}
    return GPT(GPTConfig(**(shape | options)))


def page_of(model, tokenizer=CHARACTERS):
    return export.page_of(Model("small", model, tokenizer))


def part(page, name):
    return re.search(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, re.DOTALL)[1]


def test_the_page_of_the_preset_cpu_is_smaller_than_3_mb():
    shape = pick(PRESETS["cpu"], fields_of(GPTConfig))
    tokenizer = CharTokenizer("".join(map(chr, range(65))))
    assert len(page_of(GPT(GPTConfig(vocab_size=65, **shape)), tokenizer).encode()) < 3_000_000


def test_the_forward_pass_has_at_most_250_lines():
    assert len((export.STATIC / "model.js").read_text(encoding="utf-8").splitlines()) <= 250


def test_the_page_loads_nothing_and_runs_only_its_own_script():
    page = page_of(gpt())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert export.digest(script) in policy
    assert export.digest(re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]) in policy
    assert not re.search(r'(src|href)="|url\(|@import|https?:', page)


def test_no_name_and_no_token_ends_its_element():
    tokenizer = BPETokenizer([], special_tokens=["</script><script>alert(1)</script>"])
    page = export.page_of(Model("</title><script>", gpt(tokenizer), tokenizer))
    assert page.count("<script") == page.count("</script>") == 3
    characters = CharTokenizer("</script>")
    assert json.loads(part(page_of(gpt(characters), characters), "about"))["tokenizer"]["characters"] == "</script>"


def test_the_weights_are_float16_in_the_order_of_their_names():
    model = gpt(tie_weights=False)
    page = page_of(model)
    about = json.loads(part(page, "about"))
    halves = np.frombuffer(base64.b64decode(part(page, "weights")), "<f2")
    expected = [parameter.data.ravel() for _, parameter in model.named_parameters()]
    np.testing.assert_array_equal(halves, np.concatenate(expected).astype(np.float16))
    assert [name for name, _ in about["shapes"]] == [name for name, _ in model.named_parameters()]
    assert about["config"] == dataclasses.asdict(model.config)


def test_a_model_that_is_too_large_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "MOST_PARAMETERS", 100)
    with pytest.raises(ConfigError, match=r"^--export: the model has [\d,]+ parameters; expected at most 100, which"):
        export.write_page(tmp_path / "page.html", "large", gpt(), CHARACTERS)
    assert not list(tmp_path.iterdir())


def test_weights_that_float16_cannot_hold_are_refused():
    model = gpt()
    model.ln_f.weight.data[0] = 1e6
    with pytest.raises(ConfigError, match=r"ln_f.weight has 1e\+06; expected numbers that float16 can hold"):
        page_of(model)


@pytest.mark.parametrize("option", ["--live", "--compare=other"])
def test_one_model_is_exported(option):
    assert run_program("playground", "--export", "page.html", option) == (
        "error: --export writes one model; expected neither --compare nor --live"
    )


def test_the_program_writes_the_page(tmp_path, capsys):
    path = tmp_path / "run" / "best.safetensors"
    path.parent.mkdir()
    model = gpt()
    checkpoint.save(path, model, model.configure_optimizer(1e-3), CHARACTERS, {})
    assert run_program("playground", "--checkpoint", path.parent, "--export", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<h1>run</h1>") == 1
    assert "bytes; open it in a browser" in capsys.readouterr().out
    message = run_program("playground", "--checkpoint", path.parent, "--export", path / "page.html")
    assert str(message).startswith(f"error: --export {path / 'page.html'}: cannot be written (")
