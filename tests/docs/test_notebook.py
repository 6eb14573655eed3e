"""The notebook on self-attention, run again from top to bottom: nothing fails, and it says what it said when stored."""

import base64
import json
import os
import re
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = ROOT / "examples" / "self_attention.ipynb"
VERSIONS = ["1. Loops", "2. A triangular product", "3. Softmax of masked zeros", "4. Self-attention"]


@pytest.fixture(scope="module")
def stored():
    return json.loads(PATH.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run afresh by this very interpreter, whatever kernels are registered and whatever home there is."""
    for package in ("ipykernel", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed (the extra `test`)")
    folder = tmp_path_factory.mktemp("jupyter")
    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.joinpath("kernel.json").write_text(json.dumps({"argv": start, "display_name": "", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's warnings are about Jupyter
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(folder / variable.lower()))
        patch.setenv("JUPYTER_PATH", str(folder))  # where kernels are looked for first
        patch.delenv("JUPYTER_PREFER_ENV_PATH", raising=False)
        patch.setenv("JUPYTER_NO_CONFIG", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the extra `test`)")
        nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (the extra `test`)")
        notebook = nbformat.read(PATH, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell("import sys\nprint(sys.prefix, mg.__file__)"))
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()  # raises what a cell raises
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    outputs = [output for output in cell["outputs"] if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in outputs)


def pictures(cell):
    """The PNGs below a cell."""
    data = [output["data"] for output in cell["outputs"] if output["output_type"] == "display_data"]
    return [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]


def expected(cell):
    """What a cell prints; of a cell tagged "measured", which reports times, the words without the numbers."""
    text = printed(cell)
    return re.sub(r"[\d.]+", "#", re.sub(" +", " ", text)) if "measured" in cell["metadata"].get("tags", []) else text


def test_it_runs_with_this_python_and_this_minigrad(executed):
    assert printed(executed["cells"][-1]) == f"{sys.prefix} {ROOT / 'minigrad' / '__init__.py'}\n"


def test_it_prints_what_is_stored(stored, executed):
    for before, now in zip(code_cells(stored), code_cells(executed), strict=False):
        assert expected(now) == expected(before), "".join(before["source"])
    assert sum(bool(printed(cell)) for cell in code_cells(stored)) >= 12


def test_it_draws_as_many_pictures_as_are_stored(stored, executed):
    numbers = [[len(pictures(cell)) for cell in code_cells(each)] for each in (stored, executed)]
    assert numbers[0] == numbers[1][:-1]
    assert sum(numbers[0]) == 6
    for cell in code_cells(stored):
        assert all(picture.startswith(b"\x89PNG") for picture in pictures(cell))


def test_all_four_versions_are_there_and_equal_where_they_should_be(stored):
    text = "\n".join("".join(cell["source"]) for cell in stored["cells"] if cell["cell_type"] == "markdown")
    titles = re.findall(r"^## (\d\. .*)$", text, re.M)
    assert titles == VERSIONS
    said = "".join(printed(cell) for cell in code_cells(stored))
    for claim in (
        "loops and product",
        "dL/dx of loops and product",
        "softmax of masked zeros and W",
        "product and softmax",
        "composed and fused",
        "attention without questions and the average: values",
        "dx from the tape and by hand",
    ):
        assert f"{claim}: largest difference 0.000000000000\n" in said
    assert len(re.findall(r"^gradcheck.*: +True$", said, re.M)) == 5


def test_it_is_stored_as_it_ran_from_top_to_bottom_and_small(stored):
    assert [cell["execution_count"] for cell in code_cells(stored)] == list(range(1, len(code_cells(stored)) + 1))
    assert {output["output_type"] for cell in code_cells(stored) for output in cell["outputs"]} <= {
        "stream",
        "display_data",
    }
    assert not any(output.get("name") == "stderr" for cell in code_cells(stored) for output in cell["outputs"])
    assert PATH.stat().st_size < 400_000


def test_nothing_of_the_machine_that_ran_it_is_stored(stored):
    assert stored["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in stored["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
    text = PATH.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|Users|work)/|[A-Z]:\\\\", text)


def test_the_files_it_points_to_exist(stored):
    text = "\n".join("".join(cell["source"]) for cell in stored["cells"] if cell["cell_type"] == "markdown")
    names = re.findall(r"`([\w/]+\.py)`", text)
    assert {"minigrad/ops/attention.py", "gpt/model.py"} <= set(names)
    assert not [name for name in names if not (ROOT / name).exists()]
