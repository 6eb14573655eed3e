"""The notebook is run once for all tests, and so is the build of the site."""

import warnings

import pytest

from docs import build, examples, guides


@pytest.fixture(scope="session")
def notebook(tmp_path_factory):
    """The notebook run afresh by this interpreter, without the settings that a user may have for Jupyter."""
    folder = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's warnings are about Jupyter
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(folder / variable.lower()))
        patch.setenv("JUPYTER_NO_CONFIG", "1")
        return guides.executed(build.ROOT / build.NOTEBOOK)


@pytest.fixture(scope="session")
def site(tmp_path_factory, notebook):
    """The folder of the whole site."""
    folder = tmp_path_factory.mktemp("library") / "site"
    assert build.build(folder, examples.models) == []
    return folder
