"""Tensors go to a file and come back, whole or not at all."""

import errno
import hashlib
import json
import os
import re
import stat

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import minigrad as mg
from minigrad import serialization


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state.safetensors"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 1), (2, 0, 3)])
def test_every_dtype_and_shape_comes_back(file, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    mg.save({"x": mg.Tensor(array)}, file)
    (loaded,) = mg.load(file).values()
    assert isinstance(loaded, mg.Tensor)
    assert (loaded.shape, loaded.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(loaded.data, array)


def test_names_and_numbers_come_back_bit_for_bit(file):
    state = {
        "plain array": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
        "h.0.attn.weight": mg.Tensor(np.random.default_rng(0).standard_normal((3, 4))),
        "caf\u00e9": mg.nn.Parameter([1.0]),
    }
    mg.save(state, str(file))
    loaded = mg.load(str(file))
    assert set(loaded) == set(state)
    for name, value in state.items():
        assert loaded[name].data.tobytes() == np.asarray(value).tobytes()


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[::-1], lambda x: x[::2, 1:]], ids=["T", "[::-1]", "[::2]"])
def test_views_are_saved_as_they_look(file, view):
    x = view(np.arange(12.0).reshape(4, 3))
    mg.save({"x": x}, file)
    np.testing.assert_array_equal(mg.load(file)["x"].data, x)


def test_loaded_tensors_can_be_written_to_and_outlive_the_file(file):
    mg.save({"x": np.zeros(3)}, file)
    x = mg.load(file)["x"]
    file.unlink()
    x[0] = 5.0
    np.testing.assert_array_equal(x.data, [5, 0, 0])


def test_text_beside_the_tensors(file):
    mg.save({"x": np.zeros(1)}, file, metadata={"format": "pt", "step": "7"})
    tensors, metadata = serialization.load_with_metadata(file)
    assert list(tensors) == ["x"]
    assert metadata == {"format": "pt", "step": "7"}
    mg.save({}, file)
    assert serialization.load_with_metadata(file) == ({}, {})


def test_folders_are_made(tmp_path):
    mg.save({"x": np.zeros(1)}, tmp_path / "a" / "b" / "state")
    assert "x" in mg.load(tmp_path / "a" / "b" / "state")


@pytest.mark.parametrize("fails", ["replace", "fsync", "chmod"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file, fails, monkeypatch):
    mg.save({"x": np.array([1.0])}, file)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        mg.save({"x": np.array([2.0])}, file)
    monkeypatch.undo()
    assert mg.load(file)["x"].item() == 1
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(file):
    before = os.umask(0o027)
    try:
        mg.save({"x": np.zeros(1)}, file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640
    file.chmod(0o604)
    mg.save({"x": np.ones(1)}, file)
    assert file.stat().st_mode & 0o777 == 0o604


@pytest.mark.skipif(os.name == "nt", reason="links take special rights on Windows")
def test_a_symbolic_link_stays_one_and_its_file_is_written(file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file.symlink_to(elsewhere / "target")
    for value in (1.0, 2.0):
        mg.save({"x": np.array([value])}, file)
        assert file.is_symlink()
        assert mg.load(elsewhere / "target")["x"].item() == value
    assert os.listdir(elsewhere) == ["target"]


def test_a_full_disk_is_an_error_that_names_the_file(file, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{file}'$"):
        mg.save({"x": np.array([2.0])}, file)


def test_an_interrupt_leaves_no_temporary_file(file, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mg.save({"x": np.array([2.0])}, file)
    assert os.listdir(file.parent) == []


def test_saving_replaces_the_file_and_leaves_no_temporary_one(file):
    for value in (1.0, 2.0):
        mg.save({"x": np.array([value])}, file)
    assert mg.load(file)["x"].item() == 2
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(file, share):
    mg.save({"x": np.arange(1000.0), "y": np.arange(10)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="state.safetensors: not a whole safetensors file"):
        mg.load(file)


@pytest.mark.parametrize(
    "content", [b"\xff" * 100, b"hello, this is no safetensors file", b"\x80\x04K\x01.", b"\x02\0\0\0\0\0\0\0{}garbage"]
)
def test_a_file_of_something_else_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(ValueError, match="state.safetensors: not a whole safetensors file"):
        mg.load(file)


@pytest.mark.parametrize(("stored", "size"), [("F8_E4M3", 1), ("C64", 8)])
def test_numbers_that_tensors_do_not_hold_are_refused_by_the_name_of_their_dtype(file, stored, size):
    header = json.dumps({"x": {"dtype": stored, "shape": [1], "data_offsets": [0, size]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(ValueError, match=f"state.safetensors: x is stored as {stored}, which cannot be read"):
        mg.load(file)


def test_a_shape_that_numpy_does_not_hold_is_refused_by_name(file):
    header = json.dumps({"x": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        ValueError, match=r"state.safetensors: x has shape \[0, 9223372036854775808\], which cannot be read"
    ):
        mg.load(file)


def test_the_name_under_which_the_format_keeps_its_text_is_no_tensors(file):
    mg.save({"x": np.zeros(1)}, file)
    with pytest.raises(ValueError, match='save: no tensor can be named "__metadata__"'):
        mg.save({"__metadata__": np.zeros(1)}, file)
    assert list(mg.load(file)) == ["x"]


def test_a_file_that_is_not_there(file):
    with pytest.raises(FileNotFoundError, match="state.safetensors: there is no such file"):
        mg.load(file)


def test_a_file_that_cannot_be_read_is_not_called_missing(file, tmp_path):
    file.symlink_to(file.name)
    with pytest.raises(OSError, match=r"state.safetensors: cannot be read \(Too many levels of symbolic links\)"):
        mg.load(file)
    with pytest.raises(OSError, match="is not a file"):
        mg.load(tmp_path)


def test_a_folder_is_flushed_after_a_rename(file, monkeypatch):
    """As a power failure may else bring the old name back. What is flushed: the new file, then its folder."""
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (flushed.append(os.fstat(number)), fsync(number)))
    mg.save({"a": np.ones(2)}, file)
    assert [stat.S_ISDIR(about.st_mode) for about in flushed] == [False, True]
    assert os.path.samestat(flushed[0], file.stat())
    assert os.path.samestat(flushed[1], file.parent.stat())


# Checksums


def save_without_a_digest(path, arrays, metadata=None):
    """What other programs write."""
    path.write_bytes(safetensors.numpy.save(arrays, metadata))


def test_files_of_other_programs_have_no_checksum_and_are_read(file):
    save_without_a_digest(file, {"x": np.arange(3.0)}, {"format": "pt"})
    tensors, metadata = serialization.load_with_metadata(file)
    np.testing.assert_array_equal(tensors["x"].data, [0, 1, 2])
    assert metadata == {"format": "pt"}


def test_other_programs_read_what_is_saved(file):
    state = {"b": np.array([True, False, True]), "x": np.arange(6.0).reshape(2, 3).T, "n": np.int16([7])}
    mg.save(state, file, {"format": "pt"})
    found = safetensors.numpy.load_file(file)
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)
    with safetensors.safe_open(file, "numpy") as opened:
        assert opened.metadata()["format"] == "pt"


def test_every_flipped_bit_is_noticed(file):
    """In the length of the header, the header, the digest itself, its name, the padding and the numbers."""
    mg.save({"x": np.arange(2, dtype=np.float16)}, file, {"a": "b"})
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(
            ValueError, match=r"state\.safetensors: (not a whole safetensors file|damaged: its SHA-256)"
        ):
            mg.load(file)


def test_zeroed_pages_are_noticed(file):
    mg.save({"x": np.random.default_rng(0).random(10_000)}, file)
    content = file.read_bytes()
    for start in range(0, len(content), 4096):
        file.write_bytes(content[:start] + bytes(4096) + content[start + 4096 :])
        with pytest.raises(
            ValueError, match=r"state\.safetensors: (not a whole|damaged: its SHA-256 is \w{64}, expected \w{64}$)"
        ):
            mg.load(file)


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(file):
    mg.save({"x": np.zeros(3)}, file)
    content = file.read_bytes()
    (digest,) = re.findall(rb'"minigrad:([0-9a-f]{64})"', content)
    assert hashlib.sha256(content.replace(digest, b"0" * 64)).hexdigest() == digest.decode()


def test_an_object_in_json_is_sealed_in_the_same_way():
    content = {"a": [1, 2.5, None], "b": "0" * 64, "caf\u00e9": {}}
    text = serialization.sealed(content)
    assert serialization.unsealed(text) == content
    assert json.loads(text)["a"] == content["a"]
    assert serialization.unsealed(json.dumps(content).encode()) == content
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"damaged: its SHA-256"):
            serialization.unsealed(bytes(changed))


def test_what_the_format_does_not_hold_is_not_written(file, monkeypatch):
    monkeypatch.setattr(serialization, "MOST_HEADER", 200)
    with pytest.raises(ValueError, match=r"save: the names and the metadata take 2\d\d bytes; expected at most 200"):
        mg.save({"x": np.zeros(3)}, file, {"about": "a" * 20})
    with pytest.raises(ValueError, match="surrogates not allowed"):
        mg.save({"\ud800": np.zeros(3)}, file)
    assert not file.exists()
