"""Tensors go to a file and come back, whole or not at all."""

import errno
import json
import os
import stat

import numpy as np
import pytest

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
