"""N ranks with a share of the batch each give what one process gives with the whole batch."""

import pytest

from . import checks_of_ddp, checks_of_zero
from .on_ranks import names_of_checks, run_on_ranks

MODULES = [checks_of_ddp, checks_of_zero]


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def results(request, tmp_path_factory):
    return run_on_ranks(MODULES, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", names_of_checks(MODULES))
def test_on_ranks(results, name):
    reports = results["reports"]
    assert reports, results["output"]
    if any(name not in report for report in reports):
        pytest.fail("not run: an earlier check failed")
    failures = [report[name] for report in reports if report[name]]
    assert not failures, "\n".join(failures)
