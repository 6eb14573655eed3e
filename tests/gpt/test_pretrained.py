"""GPT-2's weights in Hugging Face's layout: every form that they come in, and everything that can be wrong with them.

The files are written here by hand, byte by byte, so that reading and writing are tested apart from each other.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig, pretrained
from gpt.errors import PretrainedError
from minigrad import nn
from tests.fakes.hub import Hub

CONFIG = {"model_type": "gpt2", "vocab_size": 13, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}
IDS = np.array([[0, 12, 5, 5, 1, 3], [7, 7, 2, 11, 0, 9]])
ENCODERS = {
    "F64": lambda x: x.astype("<f8").tobytes(),
    "F32": lambda x: x.astype("<f4").tobytes(),
    "F16": lambda x: x.astype("<f2").tobytes(),
    "BF16": lambda x: (x.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(),
    "I32": lambda x: x.astype("<i4").tobytes(),
}


def random_weights(seed=0):
    """The tensors of CONFIG as GPT-2 has them. All are multiples of 1/64 below 2, and so exact in every dtype."""
    shapes = {"wte.weight": (13, 8), "wpe.weight": (6, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    for h in ("h.0.", "h.1."):
        shapes |= {h + "ln_1.weight": (8,), h + "ln_1.bias": (8,), h + "ln_2.weight": (8,), h + "ln_2.bias": (8,)}
        shapes |= {h + "attn.c_attn.weight": (8, 24), h + "attn.c_attn.bias": (24,)}
        shapes |= {h + "attn.c_proj.weight": (8, 8), h + "attn.c_proj.bias": (8,)}
        shapes |= {h + "mlp.c_fc.weight": (8, 32), h + "mlp.c_fc.bias": (32,)}
        shapes |= {h + "mlp.c_proj.weight": (32, 8), h + "mlp.c_proj.bias": (8,)}
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-127, 128, shape).astype(np.float32) / 64 for name, shape in shapes.items()}


def write_file(path, tensors, dtype="F32"):
    """A safetensors file: the header's length, the header, and the tensors one after the other."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        content = ENCODERS[dtype](array)
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    write_raw(path, json.dumps(header).encode(), data)


def write_raw(path, header, data=b"", length=None):
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


def write_folder(folder, tensors, dtype="F32", shards=0, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if not shards:
        write_file(folder / "model.safetensors", tensors, dtype)
        return folder
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        write_file(folder / file, {name: tensors[name] for name in tensors if files[name] == file}, dtype)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.fixture
def weights():
    return random_weights()


@pytest.fixture
def folder(tmp_path, weights):
    return write_folder(tmp_path / "model", weights)


def assert_holds(model, weights, dtype=np.float32):
    """The model's parameters are these weights, the linear ones transposed, and there are no others."""
    assert {name for name, _ in model.named_parameters()} == set(weights)
    for name, parameter in model.named_parameters():
        expected = weights[name].T if "c_" in name and name.endswith("weight") else weights[name]
        assert parameter.dtype == dtype
        np.testing.assert_array_equal(parameter.data, expected, err_msg=name)


class NeverBuilt(GPT):
    """A model that must not come into being: what is wrong has to be seen before."""

    def __init__(self, config):
        pytest.fail("a model was built")


def refusal(folder, kind=PretrainedError):
    """The message with which a folder is refused: one line."""
    with pytest.raises(kind) as caught:
        NeverBuilt.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading


@pytest.mark.parametrize("shards", [0, 1, 3], ids="{} shards".format)
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("with_head", [False, True], ids=["", "lm_head"])
@pytest.mark.parametrize("with_masks", [False, True], ids=["", "masks"])
def test_every_form_of_the_files(tmp_path, weights, shards, prefix, with_head, with_masks):
    stored = {prefix + name: array for name, array in weights.items()}
    if with_head:
        stored["lm_head.weight"] = weights["wte.weight"]
    if with_masks:
        for i in range(2):
            stored[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 6, 6), np.float32))
            stored[f"{prefix}h.{i}.attn.masked_bias"] = np.float32(-10000)
    model = GPT.from_pretrained(write_folder(tmp_path / "model", stored, shards=shards))
    assert_holds(model, weights)
    assert model.lm_head.weight is model.wte.weight
    assert model.config == GPTConfig(vocab_size=13, block_size=6, n_layer=2, n_head=2, n_embd=8, dropout=0.1)


@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", ["float32", np.float64, "float16"], ids=str)
def test_every_stored_dtype_is_converted_to_the_one_that_is_wanted(tmp_path, weights, stored, dtype):
    folder = write_folder(tmp_path / "model", weights | {"lm_head.weight": weights["wte.weight"]}, stored)
    assert_holds(GPT.from_pretrained(folder, dtype=dtype), weights, np.dtype(dtype))
    assert_holds(GPT.from_pretrained(str(folder)), weights, np.float32)


def test_every_bfloat16_is_widened_exactly(tmp_path):
    """Its bits are the upper half of a float32's: all 65536, infinities, NaNs and subnormal numbers among them."""
    path = tmp_path / "all.safetensors"
    bits = np.arange(65536, dtype="<u4") << 16
    write_file(path, {"x": bits.view("<f4").reshape(256, 256)}, "BF16")
    tensor = pretrained._read_header(path)["x"]
    pieces = [piece.view("<u4") for _, piece in tensor.pieces()]
    np.testing.assert_array_equal(np.concatenate(pieces).ravel(), bits)


@pytest.mark.parametrize("piece", [1, 7, 8, 20, 100])
def test_weights_larger_than_a_piece(folder, weights, monkeypatch, piece):
    monkeypatch.setattr(pretrained, "PIECE", piece)
    assert_holds(GPT.from_pretrained(folder), weights)


def test_a_loaded_model_is_ready_to_be_used(folder):
    model = GPT.from_pretrained(folder)
    assert not any(module.training for module in model.modules())
    np.testing.assert_array_equal(model(IDS)[0].numpy(), model(IDS)[0].numpy())
    loss = model.train()(IDS, IDS)[1]
    loss.backward()
    assert all(np.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_loaded_model_is_its_own(folder, weights):
    """It writes to no file, and no file is needed any more."""
    before = (folder / "model.safetensors").read_bytes()
    model = GPT.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data[...] += 1
    assert (folder / "model.safetensors").read_bytes() == before
    (folder / "model.safetensors").unlink()
    assert_holds(model, {name: array + 1 for name, array in weights.items()})


def test_nothing_is_drawn_at_random(folder):
    state, functions = mg.random.get_state(), (mg.random.normal, mg.random.uniform)
    GPT.from_pretrained(folder)
    assert mg.random.get_state() == state
    assert (mg.random.normal, mg.random.uniform) == functions


def test_a_model_that_cannot_be_built_leaves_random_numbers_as_they_were(folder):
    class Broken(GPT):
        def __init__(self, config):
            raise MemoryError

    functions = mg.random.normal, mg.random.uniform
    with pytest.raises(MemoryError):
        Broken.from_pretrained(folder)
    assert (mg.random.normal, mg.random.uniform) == functions


def test_a_class_of_ones_own(folder):
    class Mine(GPT):
        pass

    assert type(Mine.from_pretrained(folder)) is Mine


def test_a_class_of_ones_own_with_more_than_gpt_has(folder):
    class WithAHead(GPT):
        def __init__(self, config):
            super().__init__(config)
            self.value = nn.Linear(config.n_embd, 1)

    with pytest.raises(PretrainedError, match=r"what WithAHead has beyond GPT: value.weight, value.bias$"):
        WithAHead.from_pretrained(folder)


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "longdouble", bool, "nonsense"], ids=str)
def test_a_dtype_that_cannot_be_trained_in(folder, dtype):
    with pytest.raises(ConfigError, match="dtype is "):
        NeverBuilt.from_pretrained(folder, dtype=dtype)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of the memory from /proc")
@pytest.mark.parametrize(
    ("dtype", "shards", "with_head"), [("F32", 0, True), ("F32", 2, False), ("F16", 0, False), ("BF16", 0, True)]
)
def test_memory_stays_below_1_3_times_the_weights(tmp_path, dtype, shards, with_head):
    """In a process of its own, as the system counts it. Half of the weights are wte: a second copy would show."""
    size = {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    shape = {"vocab_size": 32000, "n_positions": 64, "n_embd": 512, "n_layer": 6, "n_head": 8}
    tensors = pretrained.layout(**{key: value for key, value in shape.items() if key != "n_head"})
    tensors |= {"lm_head.weight": tensors["wte.weight"]} if with_head else {}
    files = {name: f"{i % shards}.safetensors" if shards else "model.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):  # of zeros, and so the disk does not have to hold them
        header, end = {}, 0
        for name in tensors:
            if files[name] == file:
                start, end = end, end + size * int(np.prod(tensors[name]))
                header[name] = {"dtype": dtype, "shape": tensors[name], "data_offsets": [start, end]}
        write_raw(tmp_path / file, json.dumps(header).encode())
        os.truncate(tmp_path / file, (tmp_path / file).stat().st_size + end)
    (tmp_path / "config.json").write_text(json.dumps(shape))
    if shards:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    program = """
        import sys
        from gpt import GPT, pretrained

        def memory(kind):
            return 1024 * int(open("/proc/self/status").read().split(kind + ":")[1].split()[0])

        before = memory("VmRSS")
        model = GPT.from_pretrained(sys.argv[1])
        print(4 * model.num_parameters(), memory("VmHWM") - before, memory("VmRSS") - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, peak, after = map(int, done.stdout.split())
    assert weights > 140e6
    assert 0.99 * weights < after <= peak < 1.3 * weights


# The configuration


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "gelu_pytorch_tanh"},
        {"n_inner": None, "n_ctx": 6},
        {"n_inner": 32, "summary_type": "cls_index", "task_specific_params": {"a": 1}, "use_cache": False},
        {"layer_norm_epsilon": 1e-05, "scale_attn_weights": True, "tie_word_embeddings": True},
    ],
    ids=str,
)
def test_settings_that_change_nothing(tmp_path, weights, settings):
    assert_holds(GPT.from_pretrained(write_folder(tmp_path / "model", weights, **settings)), weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'; expected 'gelu_new' or 'gelu_pytorch_tanh'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; expected"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06; expected 1e-05"),
        ({"n_inner": 16}, "n_inner is 16; expected None or 32"),
        ({"n_ctx": 5}, "n_ctx is 5; expected 6"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False; expected True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; expected False"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True; expected False"),
        ({"add_cross_attention": True}, "add_cross_attention is True; expected False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False; expected True"),
        ({"model_type": "gpt_neo"}, "model_type is 'gpt_neo'; expected 'gpt2'"),
        ({"n_embd": None}, "n_embd is None; expected a whole number of at least 1"),
        ({"n_layer": 2.0}, "n_layer is 2.0; expected a whole number"),
        ({"n_layer": True}, "n_layer is True; expected a whole number"),
        ({"n_head": "2"}, "n_head is '2'; expected a whole number"),
        ({"n_positions": 0}, "n_positions is 0; expected a whole number"),
        ({"n_head": 3}, "n_embd 8 is not divisible by n_head 3"),
        ({"attn_pdrop": 0.2}, "attn_pdrop 0.2, embd_pdrop 0.1, resid_pdrop 0.1; expected one probability"),
        (dict.fromkeys(pretrained.DROPOUTS, "much"), "attn_pdrop 'much'"),
        (dict.fromkeys(pretrained.DROPOUTS, 1.5), "dropout is 1.5; expected a probability"),
        ({"n_head": 0, "n_embd": 0, "activation_function": "relu"}, "n_embd is 0;.*; n_head is 0;.*; activation_func"),
    ],
    ids=str,
)
def test_settings_that_are_not_gpt2(tmp_path, weights, settings, message):
    folder = write_folder(tmp_path / "model", weights, **settings)
    with pytest.raises(PretrainedError, match=rf"model/config\.json: .*{message}"):
        NeverBuilt.from_pretrained(folder)


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_size_that_is_missing(folder, key):
    (folder / "config.json").write_text(json.dumps({name: value for name, value in CONFIG.items() if name != key}))
    assert f"{key} is None; expected a whole number" in refusal(folder)


@pytest.mark.parametrize(
    ("stored", "chosen", "expected"), [({}, None, 0.1), (0.3, None, 0.3), (0.0, 0.2, 0.2), ({"embd_pdrop": 0.4}, 0, 0)]
)
def test_dropout_is_the_configurations_or_the_one_that_is_chosen(tmp_path, weights, stored, chosen, expected):
    settings = stored if isinstance(stored, dict) else dict.fromkeys(pretrained.DROPOUTS, stored)
    model = GPT.from_pretrained(write_folder(tmp_path / "model", weights, **settings), dropout=chosen)
    assert model.config.dropout == model.drop.p == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
        (b"[" * 100_000, "not JSON"),
        (b'{"n_embd": 1' + b"0" * 5000 + b"}", "not JSON"),
        (pickle.dumps({"n_embd": 8}), "not JSON"),
    ],
    ids=range(8),
)
def test_a_configuration_that_is_none(folder, content, message):
    (folder / "config.json").write_bytes(content)
    assert refusal(folder).startswith(f"{folder / 'config.json'}: {message}")


# A configuration that contradicts the weights, and weights that are not those of a GPT-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 14}, "config.json says vocab_size 14, the weights have 13"),
        ({"n_positions": 5}, "config.json says n_positions 5, the weights have 6"),
        ({"n_embd": 16}, "config.json says n_embd 16, the weights have 8"),
        ({"n_layer": 1}, "config.json says n_layer 1, the weights have 2"),
        ({"n_layer": 10**12}, "config.json says n_layer 1000000000000, the weights have 2"),
        ({"n_embd": 2**62, "n_head": 1}, f"config.json says n_embd {2**62}, the weights have 8"),
    ],
    ids=str,
)
def test_sizes_that_the_weights_do_not_have(tmp_path, weights, settings, message):
    folder = write_folder(tmp_path / "model", weights, **settings)
    assert refusal(folder) == f"{folder}: {message}"


def test_everything_that_is_wrong_is_named_in_one_message(tmp_path, weights):
    del weights["h.0.ln_1.bias"], weights["wpe.weight"]
    weights["h.1.attn.c_attn.weight"] = weights["h.1.attn.c_attn.weight"].T
    weights["score.weight"] = np.zeros((2, 8))
    weights["h.1.attn.rotary.inv_freq"] = np.zeros(4)
    weights["lm_head.weight"] = np.zeros((8, 13))
    message = refusal(write_folder(tmp_path / "model", weights, n_head=4, vocab_size=12))
    assert message.partition(": ")[2].split("; ") == [
        "config.json says vocab_size 12, the weights have 13",
        "missing wpe.weight",
        "missing h.0.ln_1.bias",
        "unexpected score.weight",
        "unexpected h.1.attn.rotary.inv_freq",
        "h.1.attn.c_attn.weight has shape (24, 8), expected (8, 24)",
        "lm_head.weight has shape (8, 13), expected (13, 8)",
    ]


@given(data=st.data())
def test_no_tensor_can_be_missing_renamed_or_of_another_shape(tmp_path_factory, data):
    weights = random_weights()
    name = data.draw(st.sampled_from(sorted(weights)))
    what = data.draw(st.sampled_from(["missing", "renamed", "longer", "flat"]))
    array = weights.pop(name)
    if what == "renamed":
        weights[name + "s"] = array
    elif what == "longer":
        weights[name] = np.concatenate([array, array[-1:]])
    elif what == "flat":
        weights[name] = array.reshape(1, -1)
    message = refusal(write_folder(tmp_path_factory.mktemp("model"), weights))
    first, second = f"missing {name}", f"{name} has shape"
    if name in ("wte.weight", "wpe.weight") and what in ("longer", "flat"):  # the weights are believed
        assert "config.json says" in message
    else:
        assert (first if what in ("missing", "renamed") else second) in message
    assert (f"unexpected {name}s" in message) == (what == "renamed")


def test_tensors_of_another_dtype(tmp_path, weights):
    folder = write_folder(tmp_path / "model", weights, "I32")
    assert "wte.weight is stored as I32, expected F32 or F16 or BF16 or F64; " in refusal(folder)


def test_an_output_layer_of_its_own(tmp_path, weights):
    head = weights["wte.weight"].copy()
    head[12, 7] += 1 / 64
    folder = write_folder(tmp_path / "model", weights | {"lm_head.weight": head})
    assert refusal(folder) == f"{folder}: lm_head.weight differs from wte.weight; expected one matrix for both"


def test_a_tensor_with_and_without_the_prefix(tmp_path, weights):
    folder = write_folder(tmp_path / "model", weights | {"transformer.wte.weight": weights["wte.weight"]})
    assert "transformer.wte.weight is stored twice" in refusal(folder)


# Files that are damaged, or made to do harm


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    {
        "empty": (b"", b"", None),
        "header longer than the file": (b"{}", b"", 100),
        "header longer than memory": (b"{}", b"", 2**63),
        "header of all bits": (b"{}", b"", 2**64 - 1),
        "no JSON": (b"hello, world", b"", None),
        "no UTF-8": (b'{"\xff": 1}', b"", None),
        "a list": (b"[]", b"", None),
        "deeply nested": (b'{"a":' * 100_000, b"", None),
        "tensors that overlap": (json.dumps({"a": ONE, "b": ONE}).encode(), bytes(4), None),
        "a hole": (json.dumps({"a": ONE, "b": ONE | {"data_offsets": [8, 12]}}).encode(), bytes(12), None),
        "beyond the end": (json.dumps({"a": ONE | {"data_offsets": [4, 8]}}).encode(), bytes(4), None),
        "cut data": (json.dumps({"a": ONE}).encode(), bytes(3), None),
        "more data": (json.dumps({"a": ONE}).encode(), bytes(5), None),
        "backwards": (json.dumps({"a": ONE | {"data_offsets": [4, 0]}}).encode(), bytes(4), None),
        "negative": (json.dumps({"a": ONE | {"data_offsets": [-4, 0]}}).encode(), bytes(4), None),
        "another length than its shape's": (json.dumps({"a": ONE | {"shape": [2]}}).encode(), bytes(4), None),
        "another length than its dtype's": (json.dumps({"a": ONE | {"dtype": "F16"}}).encode(), bytes(4), None),
        "a shape that overflows": (json.dumps({"a": ONE | {"shape": [2**63, 2, 2]}}).encode(), bytes(4), None),
        "a negative shape": (json.dumps({"a": ONE | {"shape": [-1]}}).encode(), bytes(4), None),
        "an unknown dtype": (json.dumps({"a": ONE | {"dtype": "OBJECT"}}).encode(), bytes(4), None),
        "no offsets": (b'{"a":{"dtype":"F32","shape":[1]}}', bytes(4), None),
        "a name twice": (b'{"wte":%b,"wte":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(4), None),
        "a pickle": (pickle.dumps({"a": 1}), b"", None),
    }.values(),
    ids=lambda value: None,
)
def test_a_hostile_header(folder, header, data, length):
    write_raw(folder / "model.safetensors", header, data, length)
    assert refusal(folder).startswith(f"{folder / 'model.safetensors'}: not a whole safetensors file (")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file(tmp_path_factory, share):
    folder = write_folder(tmp_path_factory.mktemp("model"), random_weights())
    file = folder / "model.safetensors"
    os.truncate(file, int(share * file.stat().st_size))
    assert "not a whole safetensors file" in refusal(folder)


@given(place=st.integers(0), byte=st.binary(min_size=1, max_size=1))
def test_a_damaged_header_is_refused_or_harmless(tmp_path_factory, place, byte):
    """Whatever a byte of it is changed to, there is a clear error, or a model where the byte meant nothing."""
    folder = write_folder(tmp_path_factory.mktemp("model"), random_weights())
    content = bytearray((folder / "model.safetensors").read_bytes())
    place %= 8 + int.from_bytes(content[:8], "little")
    content[place : place + 1] = byte
    (folder / "model.safetensors").write_bytes(content)
    try:
        model = GPT.from_pretrained(folder)
    except PretrainedError:
        return
    assert model.num_parameters() == sum(array.size for array in random_weights().values())


def test_a_folder_that_is_not_there(tmp_path):
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "../nowhere", "a/b/c", "gpt3", "..", "/"):
        with pytest.raises(PretrainedError, match="there is no such folder$|there is no config.json$"):
            NeverBuilt.from_pretrained(source)


def test_a_file_in_place_of_its_folder(folder):
    assert refusal(folder / "config.json") == f"{folder / 'config.json'}: is a file; expected its folder"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", "there are no weights (model.safetensors or model.safetensors.index.json)"),
    ],
)
def test_a_folder_without_one_of_its_files(folder, missing, message):
    (folder / missing).unlink()
    assert refusal(folder) == f"{folder}: {message}"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]
)
def test_pickles_are_not_opened(folder, name, tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Harm()))
    message = refusal(folder)
    assert "a pickle" in message
    assert f"save_pretrained('{folder}')" in message
    assert not (tmp_path / "harm").exists()


def test_a_file_that_cannot_be_read(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert refusal(folder) == f"{folder / 'config.json'}: cannot be read (Is a directory)"


# Shards


@pytest.fixture
def sharded(tmp_path, weights):
    return write_folder(tmp_path / "model", weights, shards=3)


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "C:\\x.safetensors", "..\\x.safetensors", "x.bin"],
)
def test_an_index_that_leads_out_of_the_folder(sharded, tmp_path, weights, name):
    write_file(tmp_path / "x.safetensors", weights)
    change_index(sharded, lambda files: files.update({"wte.weight": name}))
    assert refusal(sharded).endswith(f"index.json: expected names of safetensors files in its folder, got {name}")


def test_an_index_that_names_a_file_longer_than_any(sharded):
    change_index(sharded, lambda files: files.update({"wte.weight": "a" * 5000 + ".safetensors"}))
    assert refusal(sharded).endswith(f"index.json: expected names of safetensors files in its folder, got {'a' * 100}")


def test_a_shard_that_is_missing(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert "missing model-00002-of-00003.safetensors, listed in model.safetensors.index.json" in refusal(sharded)


def test_a_shard_that_is_cut(sharded):
    file = sharded / "model-00003-of-00003.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert refusal(sharded).startswith(f"{file}: not a whole safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("wte.weight"),
        lambda files: files.update({"wte.weight": files["wpe.weight"]}),
        lambda files: files.update({"wte.weights": files["wte.weight"]}),
    ],
    ids=["left out", "elsewhere", "not there"],
)
def test_an_index_that_contradicts_its_files(sharded, change):
    change_index(sharded, change)
    assert "model.safetensors.index.json: does not match the files in wte.weight" in refusal(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"wte": 1}}'])
def test_an_index_that_is_none(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json: expected a weight_map" in refusal(sharded)


def test_one_file_goes_before_shards_as_in_transformers(sharded):
    others = random_weights(seed=1)
    write_file(sharded / "model.safetensors", others)
    assert_holds(GPT.from_pretrained(sharded), others)


# Writing


def random_model(dtype="float32", **options):
    model = GPT(GPTConfig(vocab_size=13, block_size=6, n_layer=2, n_head=2, n_embd=8, **options))
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    return model.to(dtype=dtype).eval()


def read_by_hand(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_the_files_that_are_written(tmp_path):
    """Each byte is looked at: what others read is this, and not what our own reader makes of it."""
    model = random_model(dropout=0.2)
    model.save_pretrained(tmp_path / "new" / "model")
    assert {path.name for path in (tmp_path / "new" / "model").iterdir()} == {"config.json", "model.safetensors"}
    header, data = read_by_hand(tmp_path / "new" / "model" / "model.safetensors")
    config = tmp_path / "new" / "model" / "config.json"
    metadata = header.pop("__metadata__")
    assert metadata.pop("minigrad.sha256").startswith("minigrad:")
    assert metadata == {"format": "pt", "config.json": hashlib.sha256(config.read_bytes()).hexdigest()}
    assert set(header) == {f"transformer.{name}" for name in random_weights()}
    read = {}
    for name, about in header.items():
        assert about["dtype"] == "F32"
        start, stop = about["data_offsets"]
        read[name.removeprefix("transformer.")] = np.frombuffer(data[start:stop], "<f4").reshape(about["shape"])
    assert_holds(model, read)
    config = json.loads(config.read_text())
    expected = {"architectures": ["GPT2LMHeadModel"], "vocab_size": 13, "n_positions": 6, "n_ctx": 6, "n_head": 2}
    expected |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    expected |= {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2, "eos_token_id": None}
    assert {key: config[key] for key in (*CONFIG, *expected)} == CONFIG | expected


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
def test_a_model_comes_back(tmp_path, dtype, bias):
    model = random_model(dtype, bias=bias, dropout=0.25)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(str(tmp_path), dtype=dtype)
    assert loaded.config == model.config
    for (name, ours), (_, theirs) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_array_equal(ours.data, theirs.data, err_msg=name)
    np.testing.assert_array_equal(model(IDS)[0].numpy(), loaded(IDS)[0].numpy())


def test_a_model_without_biases_is_written_with_zeros(tmp_path):
    model = random_model(bias=False)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings.pop("bias") is False
    (tmp_path / "config.json").write_text(json.dumps(settings))  # as a reader sees it that does not know the key
    weights = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights), weights)  # without the digest of config.json
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == dataclasses.replace(model.config, bias=True)
    assert not any(parameter.data.any() for name, parameter in loaded.named_parameters() if name.endswith("bias"))
    np.testing.assert_allclose(loaded(IDS)[0].numpy(), model(IDS)[0].numpy(), rtol=1e-5, atol=1e-6)


def test_biases_that_are_said_not_to_be_there(tmp_path, weights):
    for name in weights:
        if name.endswith(".bias") and name != "h.1.ln_2.bias":
            weights[name][...] = 0
    message = refusal(write_folder(tmp_path / "model", weights, bias=False))
    said = 'config.json says "bias": false, but these biases are not zero: h.1.ln_2.bias'
    assert message.endswith(f'{said}; set "bias": true to use them')
    assert_holds(GPT.from_pretrained(write_folder(tmp_path / "model", weights, bias=True)), weights)


def test_a_flipped_bit_of_a_saved_model_is_noticed(tmp_path):
    """Also those that only a digest can tell: n_head, dropout, a weight."""
    folder = tmp_path / "model"
    random_model(dropout=0.2).save_pretrained(folder)
    rng = np.random.default_rng(0)
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        for bit in rng.integers(8 * len(content), size=300):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            assert refusal(folder).startswith(str(folder))
        (folder / name).write_bytes(content)
    GPT.from_pretrained(folder)


def test_settings_changed_after_the_weights_were_written_are_named(tmp_path):
    random_model().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"n_head": 2', '"n_head": 4'))
    assert refusal(tmp_path).startswith(f"{config}: its SHA-256 is not the one in the weights")


def test_saving_what_was_loaded_gives_the_same_tensors(folder, tmp_path, weights):
    GPT.from_pretrained(folder).save_pretrained(tmp_path / "again")
    GPT.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "again")  # over its own files
    assert_holds(GPT.from_pretrained(tmp_path / "again"), weights)


def untie(model):
    model.lm_head.weight = nn.Parameter(model.wte.weight.data.copy())


def add_an_adapter(model):
    model.h[0].attn.adapter = nn.Linear(8, 2)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"position": "rotary"}, None, "position is 'rotary', expected 'learned'; missing wpe.weight"),
        ({"norm": "rms"}, None, "norm is 'rms', expected 'layer'"),
        ({"activation": "relu2"}, None, "activation is 'relu2', expected 'gelu'"),
        ({"qk_norm": True}, None, "qk_norm is True, expected False"),
        ({"logit_softcap": 15.0}, None, "logit_softcap is 15.0, expected 0.0"),
        ({"tie_weights": False}, None, "tie_weights is False, expected True; unexpected lm_head.weight"),
        ({}, untie, "unexpected lm_head.weight"),
        ({}, add_an_adapter, "unexpected h.0.attn.adapter.weight; unexpected h.0.attn.adapter.bias"),
        ({}, lambda model: vars(model).pop("ln_f"), "missing ln_f.weight; missing ln_f.bias"),
        (
            {},
            lambda model: setattr(model.wpe, "weight", nn.Parameter(np.zeros((7, 8)))),
            r"wpe.weight is float64 \(7, 8\), expected float32 or float16 or float64 \(6, 8\)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_a_model_that_is_not_gpt2_is_not_written(tmp_path, options, change, message):
    model = random_model(**options)
    if change:
        change(model)
    with pytest.raises(PretrainedError, match=f"save_pretrained: the model does not fit GPT-2's layout: {message}"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("option", ["zero_init_residual", "checkpoint"])
def test_how_a_model_learned_is_no_part_of_it(tmp_path, option):
    random_model(**{option: True}).save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).num_parameters() == random_model().num_parameters()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_files_and_no_others(folder, weights, monkeypatch, fails, error):
    def fail(*args):
        raise error

    model = random_model()
    monkeypatch.setattr(os, fails, fail)
    expected = {"match": r"model: cannot be written \(No space left on device\)"} if isinstance(error, OSError) else {}
    with pytest.raises(PretrainedError if expected else KeyboardInterrupt, **expected):
        model.save_pretrained(folder)
    monkeypatch.undo()
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert_holds(GPT.from_pretrained(folder), weights)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PretrainedError, match=r"file: cannot be written \(.+\)"):
        random_model().save_pretrained(tmp_path / "file")


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, with a model that nobody has downloaded yet; the cache is in tmp_path."""
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)
    with Hub().running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def upload(hub, folder, name):
    for file in folder.iterdir():
        path = f"/{name}/resolve/main/{file.name}"
        hub.files[path] = file.read_bytes()
        if file.suffix == ".safetensors":
            hub.large.add(path)


@pytest.mark.parametrize(
    ("name", "repository"),
    [(f"gpt2{size}", f"openai-community/gpt2{size}") for size in ("", "-medium", "-large", "-xl")]
    + [("someone/some_model-1.0", "someone/some_model-1.0")],
)
def test_a_model_is_downloaded_once(hub, folder, tmp_path, weights, name, repository, capfd):
    upload(hub, folder, repository)
    assert_holds(GPT.from_pretrained(name), weights)
    assert "model.safetensors: 100%" in capfd.readouterr().err
    assert len(hub.asked) == 3  # of which one is the redirect
    cached = tmp_path / "cache" / "models" / repository
    assert {path.name for path in cached.iterdir()} == {"config.json", "model.safetensors"}
    hub.files.clear()
    assert_holds(GPT.from_pretrained(name), weights)
    assert len(hub.asked) == 3


def test_a_sharded_model_is_downloaded_once(hub, sharded, weights):
    upload(hub, sharded, "someone/large")
    assert_holds(GPT.from_pretrained("someone/large"), weights)
    asked = len(hub.asked)
    hub.files.clear()
    assert_holds(GPT.from_pretrained("someone/large"), weights)
    assert len(hub.asked) == asked


def test_a_download_that_failed_goes_on_with_the_file_that_is_missing(hub, sharded, weights):
    upload(hub, sharded, "someone/large")
    lost = "/someone/large/resolve/main/model-00003-of-00003.safetensors"
    content = hub.files.pop(lost)
    with pytest.raises(PretrainedError, match=f"{lost}: the server answered 404"):
        NeverBuilt.from_pretrained("someone/large")
    hub.files = {lost: content}
    assert_holds(GPT.from_pretrained("someone/large"), weights)


def test_a_download_that_is_not_what_the_hub_promised_is_not_kept(hub, folder, tmp_path):
    upload(hub, folder, "someone/small")
    hub.etags["/someone/small/resolve/main/model.safetensors"] = f'"{"1" * 64}"'
    assert "not the file that was expected" in refusal("someone/small")
    assert [path.name for path in (tmp_path / "cache" / "models" / "someone" / "small").iterdir()] == ["config.json"]


def test_a_folder_of_that_name_goes_first(hub, weights, tmp_path):
    write_folder(tmp_path / "gpt2", weights)
    assert_holds(GPT.from_pretrained("gpt2"), weights)
    assert not hub.asked


def test_a_name_that_the_hub_does_not_know(hub):
    assert "/someone/nothing/resolve/main/config.json: the server answered 404 Not Found" in refusal("someone/nothing")


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(hub, tmp_path, folder, weights, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")  # nobody listens there
    cached = tmp_path / "cache" / "models" / "openai-community" / "gpt2"
    message = refusal("gpt2")
    assert "Connection refused" in message
    files = "config.json and model.safetensors from http://127.0.0.1:9/openai-community/gpt2/tree/main into"
    assert f"Put {files} {cached}" in message
    folder.rename(cached)
    assert_holds(GPT.from_pretrained("gpt2"), weights)


def test_the_address_is_the_hubs_unless_another_is_given(monkeypatch, tmp_path):
    asked = []

    def fake_download(url, sha256, path, progress):
        asked.append((url, sha256))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(pretrained, "download", fake_download)
    pretrained.fetch("openai-community/gpt2")
    start = "https://huggingface.co/openai-community/gpt2/resolve/main/"
    assert asked == [(start + "config.json", None), (start + "model.safetensors", None)]
