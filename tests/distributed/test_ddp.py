"""N ranks with a share of the batch each give what one process gives with the whole batch."""

import pytest

from . import checks_of_ddp
from .on_ranks import names_of_checks, run_on_ranks


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def results(request, tmp_path_factory):
    return run_on_ranks(checks_of_ddp, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", names_of_checks(checks_of_ddp))
def test_on_ranks(results, name):
    reports = results["reports"]
    assert reports, results["output"]
    if any(name not in report for report in reports):
        pytest.fail("not run: an earlier check failed")
    failures = [report[name] for report in reports if report[name]]
    assert not failures, "\n".join(failures)
