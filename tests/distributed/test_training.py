"""N ranks with a share of the batch each give what one process gives with the whole batch."""

import json

import pytest

from . import checks_of_ddp, checks_of_zero
from .launching import run_ranks
from .on_ranks import names_of_checks

pytestmark = pytest.mark.mpi
MODULES = [checks_of_ddp, checks_of_zero]


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def reports(request, tmp_path_factory):
    """What each rank reported of every check, from one start of all ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    modules = [module.__name__ for module in MODULES]
    ended = run_ranks("tests.distributed.on_ranks", folder, *modules, ranks=request.param, timeout=120)
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    assert len(reports) == request.param, ended.err
    return reports


@pytest.mark.parametrize("name", names_of_checks(MODULES))
def test_on_ranks(reports, name):
    if any(name not in report for report in reports):
        pytest.fail("not run: an earlier check failed")
    failures = [report[name] for report in reports if report[name]]
    assert not failures, "\n".join(failures)
