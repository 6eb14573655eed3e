"""Fine-tuning: from any model, whole or by adapters, stopped and resumed at any step, and written for other tools."""

import json
import re
import signal

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, CharTokenizer, GPTConfig, checkpoint, lora
from gpt.errors import PretrainedError
from gpt.evaluate import evaluate
from gpt.loading import TOKENIZER, load_model, save_pretrained
from gpt.run import ADAPTERS
from gpt.text.tokenizer import BPETokenizer, GPT2Tokenizer
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu
from tests.gpt.gpt2_files import gpt2_tokenizer
from tests.programs import load_program, run_program

TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40
OTHER = "\n".join(line[::-1] for line in TEXT.splitlines()) + "\n"  # the same characters, in another language


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a small model in Hugging Face's layout that has learned a text a little, and its tokenizer."""
    mg.manual_seed(0)
    tokenizer = CharTokenizer.from_text(TEXT)
    shape = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    ids = tokenizer.encode(TEXT)[: 17 * 50].reshape(50, 17)
    optimizer = model.configure_optimizer(lr=1e-2)
    for _ in range(30):
        model(ids[:, :-1], ids[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("base")
    save_pretrained(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text(OTHER, encoding="utf-8")
    return path


@pytest.fixture
def finetune(base, text, tmp_path):
    """Run the program with small settings; `out` names the run's folder."""

    def run(out, *options, model=base):
        common = ["--data", text, "--out", tmp_path / out, "--eval-interval", 10, "--eval-iters", 2]
        common += [] if "--resume" in options else ["--model", model, "--batch-size", 2, "--grad-accum", 2]
        return run_program("finetune", *common, *options)

    return run


LEARN = ["--max-iters", 20, "--learning-rate", 1e-2, "--warmup-iters", 2]
LORA = ["--lora-rank", 4, "--lora-layers", "attn.c_attn,mlp.c_fc"]


def loss(model, tokenizer):
    return evaluate(model, tokenizer.encode(OTHER), len(OTHER)).loss


@pytest.mark.parametrize("options", [[], LORA], ids=["whole", "adapters"])
def test_it_learns_shows_samples_and_keeps_the_best(finetune, base, tmp_path, capsys, options):
    assert finetune("run", *LEARN, *options) == 0
    shown = capsys.readouterr().out
    estimates = [float(x) for x in re.findall(r"^step +\d+: .* validation loss ([\d.]+)", shown, re.M)]
    assert len(estimates) == 3
    assert estimates[-1] < estimates[0] - 0.05
    assert len(re.findall(r"^    \| \.tam eht no ", shown, re.M)) == 3, "each sample goes on from the validation text"
    best = checkpoint.load(checkpoint.find(tmp_path / "run"))
    assert best.run["best_val_loss"] == pytest.approx(min(estimates), abs=1e-4)
    assert best.path.name == checkpoint.BEST


def test_the_schedule_is_a_warm_up_and_a_cosine(finetune, tmp_path):
    finetune("run", "--max-iters", 20, "--learning-rate", 1e-2, "--warmup-iters", 5, "--sample-tokens", 0)
    rows = checkpoint.load(tmp_path / "run" / checkpoint.LAST).rows()
    rates = {row["iteration"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    assert rates[1] == pytest.approx(1e-2 / 6)
    assert rates[20] == pytest.approx(mg.optim.warmup_cosine(19, 1e-2, 1e-3, 5, 20))


def test_a_whole_model_is_written_for_other_tools(finetune, tmp_path):
    assert finetune("run", *LEARN, "--save-pretrained", tmp_path / "hf") == 0
    saved, tokenizer = load_model(tmp_path / "hf")
    best, _ = load_model(tmp_path / "run")
    for (name, ours), (_, theirs) in zip(saved.named_parameters(), best.named_parameters(), strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data, err_msg=name)
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"


class TestAdapters:
    """With --lora-rank the run's files hold adapters alone."""

    def test_the_files(self, finetune, base, tmp_path, capsys):
        before = {path.name: path.read_bytes() for path in base.iterdir()}
        assert finetune("run", *LEARN, *LORA, "--save-pretrained", tmp_path / "hf") == 0
        assert {path.name: path.read_bytes() for path in base.iterdir()} == before
        run = tmp_path / "run"
        assert f"--model {base} --adapters {run / ADAPTERS}" in capsys.readouterr().out
        adapted, tokenizer = load_model(base, adapters=run / ADAPTERS)
        names = {name for name, _ in adapted.named_parameters()}
        assert names == {f"h.0.{layer}.lora_{x}" for layer in ("attn.c_attn", "mlp.c_fc") for x in "AB"}
        assert set(checkpoint.load(run / checkpoint.LAST).part("model")) == names

        merged, _ = load_model(tmp_path / "hf")
        ids = tokenizer.encode(OTHER[:16])[None]
        np.testing.assert_allclose(merged(ids)[0].numpy(), adapted(ids)[0].numpy(), rtol=1e-4, atol=1e-5)
        assert loss(adapted, tokenizer) < loss(load_model(base)[0], tokenizer) - 0.05

    def test_a_checkpoint_of_adapters_is_no_model(self, finetune, base, tmp_path):
        finetune("run", *LORA, "--max-iters", 0)
        message = run_program("sample", "--model", tmp_path / "run")
        assert "holds adapters, not a model; load" in message
        assert str(tmp_path / "run" / ADAPTERS) in message

    def test_a_later_run_leaves_none_behind(self, finetune, tmp_path, capsys):
        finetune("run", *LORA, "--max-iters", 0)
        finetune("run", "--max-iters", 0)
        assert "moved       the files of an earlier run in" in capsys.readouterr().out
        assert not (tmp_path / "run" / ADAPTERS).exists()
        assert (tmp_path / "run" / "previous-1" / ADAPTERS).exists()


@pytest.mark.parametrize("options", [[], LORA], ids=["whole", "adapters"])
@pytest.mark.parametrize("stop", [10, 13])
def test_a_resumed_run_continues_exactly(finetune, tmp_path, monkeypatch, capsys, options, stop):
    """With dropout, and stopped by Ctrl-C at an estimate or between two: the same bits as one that never stopped."""
    finetune("whole", *LEARN, *options)
    program = load_program("finetune")
    step = program.Trainer.step

    def step_then_interrupt(self, learning_rate):
        result = step(self, learning_rate)
        if self.iteration == stop:
            signal.raise_signal(signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(program.Trainer, "step", step_then_interrupt)
        assert finetune("parts", *LEARN, *options) == 128 + signal.SIGINT
    shown = capsys.readouterr().out
    assert f"interrupted; step {stop} is saved" in shown
    assert shown.rstrip().endswith("--resume")
    mg.manual_seed(999)
    assert finetune("parts", "--resume") == 0
    whole, parts = (checkpoint.load(tmp_path / run / checkpoint.LAST) for run in ("whole", "parts"))
    assert whole.run["iteration"] == parts.run["iteration"] == 20
    assert whole.tensors.keys() == parts.tensors.keys()
    for name, value in whole.tensors.items():
        np.testing.assert_array_equal(value.numpy(), parts.tensors[name].numpy(), err_msg=name)


# On the fake GPU

ON_CARD = ["--device", "cuda", "--max-iters", 6, "--learning-rate", 1e-2, "--warmup-iters", 2, "--eval-interval", 3]
ON_CARD += ["--lr-decay-iters", 6, "--sample-tokens", 3]


def numbers(state):
    return {name: value.numpy() for name, value in state.items()}


def last_of(run):
    return numbers(checkpoint.load(run / checkpoint.LAST).part("model"))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype == np.float32
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def has_more_digits_than_bfloat16(value):
    return bool((np.ascontiguousarray(value).view(np.uint32) & 0xFFFF).any())


@needs_compiler
def test_a_whole_model_trained_in_bfloat16_is_written_with_all_its_digits(finetune, tmp_path, monkeypatch, capsys):
    """With `--dtype auto`, as on any card that has bfloat16; the file is read on the CPU."""
    with fake_gpu(monkeypatch):
        assert finetune("run", *ON_CARD, "--save-pretrained", tmp_path / "hf") == 0
    assert "dtype bfloat16" in capsys.readouterr().out
    best = checkpoint.load(tmp_path / "run" / checkpoint.BEST)
    assert best.run["iteration"] > 0
    saved = numbers(load_model(tmp_path / "hf")[0].state_dict())
    assert_equal(saved, numbers(best.part("model")))
    assert all(map(has_more_digits_than_bfloat16, saved.values()))


@needs_compiler
def test_adapters_trained_in_bfloat16_are_merged_with_all_digits(finetune, base, tmp_path, monkeypatch):
    """Theirs, and those of the model that they are for."""
    with fake_gpu(monkeypatch):
        assert finetune("run", *ON_CARD, *LORA, "--dtype", "bfloat16", "--save-pretrained", tmp_path / "hf") == 0
        assert finetune("parts", *ON_CARD, *LORA, "--max-iters", 3) == 0
        assert finetune("parts", *ON_CARD, "--resume") == 0
    best = checkpoint.load(tmp_path / "run" / checkpoint.BEST)
    assert best.run["iteration"] > 0
    adapters = numbers(mg.load(tmp_path / "run" / ADAPTERS))
    assert_equal(adapters, numbers(best.part("model")))
    assert all(map(has_more_digits_than_bfloat16, adapters.values()))

    merged = lora.merge(load_model(base, tmp_path / "run" / ADAPTERS)[0])
    saved, _ = load_model(tmp_path / "hf")
    assert_equal(numbers(saved.state_dict()), numbers(merged.state_dict()))
    np.testing.assert_array_equal(saved.wte.weight.numpy(), load_model(base)[0].wte.weight.numpy())
    assert_equal(last_of(tmp_path / "parts"), last_of(tmp_path / "run"))


@needs_compiler
def test_steps_are_a_graph_unless_they_are_not_to_be(finetune, tmp_path, monkeypatch):
    """Replays launch nothing one by one, and compute the same bits."""
    with fake_gpu(monkeypatch) as launches:
        assert finetune("graph", *ON_CARD) == 0
        with_graph = len(launches)
        assert finetune("plain", *ON_CARD, "--no-graph") == 0
        assert len(launches) - with_graph > with_graph
    assert_equal(last_of(tmp_path / "graph"), last_of(tmp_path / "plain"))


def test_the_cpu_computes_in_float32(finetune):
    assert "dtype is 'bfloat16', but the CPU computes in 'float32'" in finetune("run", "--dtype", "bfloat16")
    assert "dtype is 'float16', but the CPU computes in 'float32'" in finetune("run", *LORA, "--dtype", "float16")


# Where it starts from


def test_from_a_run_of_ones_own(finetune, tmp_path):
    """A checkpoint is as good a start as GPT-2's folder; fewer tokens in a sequence than the model takes, too."""
    finetune("first", "--max-iters", 1, "--sample-tokens", 0)
    assert finetune("second", "--max-iters", 1, "--block-size", 7, "--prompt", "the", model=tmp_path / "first") == 0
    assert finetune("third", "--max-iters", 0, "--dropout", 0.3, model=tmp_path / "first" / checkpoint.LAST) == 0
    assert checkpoint.load(tmp_path / "third" / checkpoint.LAST).config.dropout == 0.3


def test_adapters_do_not_go_where_the_model_lies(finetune, tmp_path):
    """A new run moves the files in its folder aside, and adapters are of no use without their model."""
    finetune("first", "--max-iters", 1, "--sample-tokens", 0)
    for model in (tmp_path / "first", tmp_path / "first" / checkpoint.BEST):
        message = finetune("first", *LORA, model=model)
        assert re.search("--out .*first is the place of --model .*first.*, .*; expected another folder$", message)
    assert (tmp_path / "first" / checkpoint.BEST).exists()


def test_adapters_are_not_merged_into_the_only_copy_of_their_model(finetune, base, tmp_path):
    """Neither by a new run nor by a resumed one; and no folder takes the name of a model that is downloaded."""
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    message = (
        f"error: --save-pretrained {base} is the place of --model {base}, which the adapters need; expected another"
    )
    assert str(finetune("run", *LORA, "--save-pretrained", base)).startswith(message)
    assert not (tmp_path / "run").exists()
    assert finetune("run", *LORA, "--max-iters", 0) == 0
    assert str(finetune("run", "--resume", "--save-pretrained", base)).startswith(message)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert "is the place of --model gpt2," in finetune("run", *LORA, "--save-pretrained", "gpt2", model="gpt2")


def test_a_run_does_not_go_where_a_model_for_other_tools_is(finetune, base, tmp_path):
    """What loads a model would take that one for the run's. Nor is one written to the folder of the run."""
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    assert str(finetune(base)).endswith("name another folder with --out")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    message = f"error: --save-pretrained {tmp_path / 'x' / '..' / 'run'} is the run's --out; expected another folder"
    assert finetune("run", "--save-pretrained", tmp_path / "x" / ".." / "run") == message
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_done_is_said_before_the_work(finetune, base, text, tmp_path):
    """The files of an earlier run stay where they are."""
    assert finetune("run", "--max-iters", 0) == 0
    shape = ["--n-layer", 1, "--n-head", 2, "--n-embd", 8, "--block-size", 8, "--max-iters", 0, "--eval-iters", 1]
    rotary = ["--position", "rotary", "--device", "cpu", "--data", text, "--out", tmp_path / "rotary"]
    run_program("train_shakespeare", *shape, *rotary)
    for model, options, message in (
        (base, ["--prompt", "THE"], "the character 'T' at position 0 is not in the vocabulary"),
        (base, ["--lora-alpha", 8], "lora_alpha is 8.0, but there are no adapters; expected lora_rank too"),
        (base, ["--save-pretrained", text], f"{text}: cannot be made (File exists)"),
        (base, ["--save-pretrained", tmp_path / "rotary"], f"{tmp_path / 'rotary'}: has a run's last.safetensors"),
        (
            tmp_path / "rotary",
            ["--save-pretrained", tmp_path / "hf"],
            "the model does not fit GPT-2's layout: position is 'rotary'",
        ),
    ):
        assert message in finetune("run", *options, model=model)
    assert not (tmp_path / "run" / "previous-1").exists()
    assert not (tmp_path / "hf").exists()


def test_the_command_for_more_can_be_pasted(finetune, base, tmp_path, capsys):
    out = tmp_path / "my run"
    for options, where in (([], f"--model '{out}'"), (LORA, f"--model {base} --adapters '{out / ADAPTERS}'")):
        assert finetune("my run", "--max-iters", 0, *options) == 0
        assert capsys.readouterr().out.endswith(f"more samples: python examples/sample.py {where}\n")


def test_no_tokenizer_of_an_earlier_model_is_left_beside_one_with_gpt2s(base, tmp_path):
    save_pretrained(*load_model(base), tmp_path)
    save_pretrained(GPT(GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=2)), GPT2Tokenizer(), tmp_path)
    assert isinstance(load_model(tmp_path)[1], GPT2Tokenizer)


def test_byte_pairs(finetune, tmp_path, capsys):
    """A model whose tokens are not characters, and a run that remembers its tokenizer."""
    tokenizer = BPETokenizer.train(TEXT, vocab_size=270)
    save_pretrained(GPT(GPTConfig(block_size=16, vocab_size=270, n_layer=1, n_head=2, n_embd=8)), tokenizer, tmp_path)
    assert finetune("run", "--max-iters", 1, "--prompt", "the cat", model=tmp_path) == 0
    assert len(re.findall(r"^    \| the cat", capsys.readouterr().out, re.M)) == 2
    _, found = load_model(tmp_path / "run")
    assert found.state() == tokenizer.state()


def test_a_vocabulary_that_is_rounded_up(finetune, tmp_path, capsys):
    """The samples along the way have no id that the tokenizer lacks."""
    mg.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=320, n_layer=1, n_head=1, n_embd=8))
    save_pretrained(model, BPETokenizer([], ()), tmp_path)
    assert finetune("run", "--max-iters", 1, "--prompt", "hello", model=tmp_path) == 0
    assert "    | hello" in capsys.readouterr().out


def test_a_vocabulary_without_its_tokenizer_is_refused(base, finetune, tmp_path):
    """Without a tokenizer of its own a folder's is GPT-2's, which this small vocabulary cannot be."""
    for path in base.iterdir():
        if path.name != TOKENIZER:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    message = finetune("run", model=tmp_path)
    assert re.search(rf"the model has \d+ tokens, its tokenizer 50257; .* there as {TOKENIZER}$", message)


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_another_vocabulary_of_hugging_faces_is_refused(base, tmp_path, file):
    """It would be read with GPT-2's in its place, and every text as nonsense."""
    save_pretrained(GPT(GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=2)), GPT2Tokenizer(), tmp_path)
    vocabulary = {f"token {i}": i for i in range(50256)} | {"<|endoftext|>": 50256}
    for content in (
        ({"model": {"vocab": vocabulary}}, {"model": None}, {}) if file == "tokenizer.json" else (vocabulary, {})
    ):
        (tmp_path / file).write_text(json.dumps(content))
        with pytest.raises(PretrainedError, match=f"{file}: this vocabulary is not GPT-2's, .* as {TOKENIZER},"):
            load_model(tmp_path)
    (tmp_path / file).write_text("{")
    with pytest.raises(PretrainedError, match=f"{file}: not JSON"):
        load_model(tmp_path)
    CharTokenizer("ab").save(tmp_path / TOKENIZER)  # what is this project's comes first
    assert isinstance(load_model(tmp_path)[1], CharTokenizer)


def test_gpt2s_own_vocabulary_is_known(tmp_path):
    encoding = gpt2_tokenizer().encoding
    spelt = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    spelt |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in spelt)}
    tokens = ["".join(spelt[byte] for byte in encoding.decode_single_token_bytes(id)) for id in range(50256)]
    vocabulary = {token: id for id, token in enumerate([*tokens, "<|endoftext|>"])}
    save_pretrained(GPT(GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=2)), GPT2Tokenizer(), tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
    assert isinstance(load_model(tmp_path)[1], GPT2Tokenizer)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"!": 1, '"': 0}))
    with pytest.raises(PretrainedError, match=r"vocab.json: this vocabulary is not GPT-2's"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block-size", 17], "block_size is 17; expected at most the model's 16"),
        (["--block-size", -1], "block_size is -1; expected a whole number of at least 0"),
        (["--lora-rank", 17], "the rank of the adapters is 17; expected 1 to 16"),
        (["--lora-rank", -1], "lora_rank is -1; expected a whole number of at least 0"),
        (["--lora-rank", 2, "--lora-alpha", 0], "the alpha of the adapters is 0.0; expected a number above 0"),
        (["--lora-rank", 2, "--lora-layers", "c_attn,query"], "no linear layer of the blocks is called 'query'"),
        (["--lora-rank", 2, "--optimizer", "muon"], "optimizer is 'muon', which is for whole matrices"),
        (["--sample-tokens", -1], "sample_tokens is -1; expected a whole number of at least 0"),
        (["--prompt", "THE"], "the character 'T' at position 0 is not in the vocabulary"),
        (["--dropout", 1.5], "dropout is 1.5; expected a probability"),
        (["--batch-size", 0], "batch_size is 0; expected a whole number of at least 1"),
        (["--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--model", "nowhere"], "nowhere: found no checkpoint"),
        (["--model", ""], "--model is missing"),
        (["--resume", "--out", "nowhere"], "nowhere/last.safetensors: there is no such file"),
    ],
)
def test_mistakes_get_one_clear_line(finetune, options, message):
    ended = finetune("run", *options)
    assert ended.startswith("error: ")
    assert message in ended
    assert len(ended.splitlines()) == 1


@pytest.mark.parametrize(
    ("first", "options", "message"),
    [
        (LORA, ["--lora-rank", 8], "--resume: lora_rank is 8; expected 4, as in the run"),
        (
            LORA,
            ["--lora-layers", "c_fc"],
            "--resume: lora_layers is c_fc; expected attn.c_attn,mlp",
        ),
        ([], ["--lora-rank", 8], "--resume: lora_rank is 8; expected 0, as in the run"),
        ([], ["--model", "other"], "--resume: model is other; expected "),
        ([], ["--dropout", 0.4], "--resume: dropout is 0.4; expected 0.1, as in the run"),
        ([], ["--optimizer", "muon"], "--resume: optimizer is muon; expected adamw, as in the run"),
        (LORA, ["--optimizer", "muon"], "--resume: optimizer is muon; expected adamw, as in the run"),
    ],
)
def test_resuming_with_another_model_is_refused(finetune, first, options, message):
    finetune("run", *first, "--max-iters", 0)
    assert message in finetune("run", "--resume", *options)


def test_adapters_are_resumed_on_the_weights_they_were_trained_on(finetune, base, tmp_path):
    finetune("run", *LORA, "--max-iters", 0)
    model, tokenizer = load_model(base)
    model.h[0].attn.c_attn.weight.data[0, 0] += 1
    save_pretrained(model, tokenizer, tmp_path / "other")
    message = finetune("run", "--resume", "--model", tmp_path / "other")
    assert "these adapters were trained on other weights" in message
    assert finetune("run", "--resume", "--max-iters", 1) == 0


def test_what_takes_less_memory_is_said_with_options_that_the_program_has(finetune, monkeypatch, capsys):
    def run_out(*_):
        raise MemoryError

    monkeypatch.setattr(GPT, "forward", run_out)
    message = finetune("run", "--max-iters", 1)
    assert run_program("finetune", "--help") == 0
    advised, known = (set(re.findall(r"--[a-z-]+", text)) for text in (message, capsys.readouterr().out))
    assert {"--batch-size", "--block-size"} <= advised <= known


def test_a_run_of_another_kind_is_not_resumed(finetune, base, text, tmp_path):
    shape = ["--n-layer", 1, "--n-head", 2, "--n-embd", 8, "--block-size", 8, "--max-iters", 0, "--eval-iters", 1]
    run_program("train_shakespeare", "--device", "cpu", "--data", text, "--out", tmp_path / "run", *shape)
    assert "expected a run of finetune.py, got another; start from it with --model" in finetune("run", "--resume")


def test_a_run_is_not_resumed_by_the_other_program(finetune, tmp_path):
    finetune("run", "--max-iters", 0)
    resume = ["--resume", "--device", "cpu", "--out", tmp_path / "run"]
    message = "error: --resume: expected a run of train_shakespeare.py, got one of finetune.py"
    assert run_program("train_shakespeare", *resume) == message


def test_resuming_on_another_text_says_so(finetune, tmp_path):
    """Before it comes upon a character that the model does not know."""
    (tmp_path / "other.txt").write_text("THE CAT SAT. " * 100, encoding="utf-8")
    finetune("run", "--max-iters", 0)
    message = finetune("run", "--resume", "--data", tmp_path / "other.txt")
    assert message.endswith("last.safetensors was trained on another text; resume with the same --data")
