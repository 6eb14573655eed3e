"""The notebook on self-attention: stored without outputs, it runs from top to bottom and prints what it says."""

import base64
import json
import re
import sys
import warnings

import nbformat
import pytest

from docs import guides
from docs.build import NOTEBOOK, ROOT

PATH = ROOT / NOTEBOOK
VERSIONS = ["1. Loops", "2. A triangular product", "3. Softmax of masked zeros", "4. Self-attention"]


@pytest.fixture(scope="module")
def stored():
    return json.loads(PATH.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    outputs = [output for output in cell["outputs"] if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in outputs)


def pictures(cell):
    """The PNGs below a cell."""
    data = [output["data"] for output in cell["outputs"] if output["output_type"] == "display_data"]
    return [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]


# Lines that it prints, with the figures that its text refers to
PRINTED = """\
7 tokens of 8 channels: the cat sat because it was tired
 [0.33 0.33 0.33 0.   0.   0.   0.  ]
 because sends gradient to: the cat sat because
loss 0.79 at first, 0.00 after 300 steps; plain averaging has 0.67
every token looks at the one before it, with more than 0.9 of its weight
q k                4        4.0           0.346     2.26     0.273
q k             1024     1031.8           0.957     0.11     0.054
q k / sqrt(D)      4        1.0           0.161     3.03     0.227
q k / sqrt(D)   1024        1.0           0.161     3.02     0.225
score difference  0: gradient 0.250000
score difference 12: gradient 0.000006
"""


def test_it_runs_with_this_python_and_this_minigrad(tmp_path):
    cell = nbformat.v4.new_code_cell("import sys, minigrad\nprint(sys.prefix, minigrad.__file__)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "where.ipynb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (cell,) = guides.executed(tmp_path / "where.ipynb").cells
    assert printed(cell) == f"{sys.prefix} {ROOT / 'minigrad' / '__init__.py'}\n"


def test_it_prints_what_its_text_says(notebook):
    lines = "".join(printed(cell) for cell in code_cells(notebook)).splitlines()
    assert [line for line in PRINTED.splitlines() if line not in lines] == []
    (counts,) = (
        dict(re.findall(r"^(additive|dot product) +([\d.]+)", printed(cell), re.M))
        for cell in code_cells(notebook)
        if "measured" in cell["metadata"].get("tags", [])
    )
    assert float(counts["additive"]) / float(counts["dot product"]) == pytest.approx(3.5, abs=0.01)
    assert sum(bool(printed(cell)) for cell in code_cells(notebook)) >= 12


def test_it_draws_six_pictures_and_warns_of_nothing(notebook):
    found = [picture for cell in code_cells(notebook) for picture in pictures(cell)]
    assert len(found) == 6
    assert all(picture.startswith(b"\x89PNG") for picture in found)
    assert not any(output.get("name") == "stderr" for cell in code_cells(notebook) for output in cell["outputs"])


def test_all_four_versions_are_there_and_equal_where_they_should_be(notebook):
    text = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert re.findall(r"^## (\d\. .*)$", text, re.M) == VERSIONS
    said = "".join(printed(cell) for cell in code_cells(notebook))
    for claim in (
        "loops and product",
        "dL/dx of loops and product",
        "softmax of masked zeros and W",
        "product and softmax",
        "composed and fused",
        "attention with zero queries and the average: values",
        "dx from the tape and by hand",
    ):
        assert f"{claim}: largest difference 0.000000000000\n" in said
    assert len(re.findall(r"^gradcheck.*: +True$", said, re.M)) == 5


def test_it_is_stored_without_outputs(stored):
    assert [cell["execution_count"] for cell in code_cells(stored)] == [None] * len(code_cells(stored))
    assert not any(cell["outputs"] for cell in code_cells(stored))


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
