"""Checks of `DistributedDataParallel` that run on several ranks; see test_training.py."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, optim
from minigrad.distributed import DistributedDataParallel

VOCABULARY, WIDTH = 11, 6


class Net(nn.Module):
    """A table that is also the output layer, a checkpointed block, dropout, and a parameter that is never used."""

    def __init__(self, dropout=0.0, checkpoint=False):
        self.table = nn.Parameter(mg.random.normal((VOCABULARY, WIDTH), 0.5))
        self.first, self.second = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm, self.unused = nn.LayerNorm(WIDTH), nn.Parameter(np.ones(2, "float32"))
        self.sometimes = nn.Parameter(np.ones(WIDTH, "float32"))
        self.dropout, self.checkpoint = nn.Dropout(dropout), checkpoint

    def loss(self, ids, targets):
        x = F.embedding(ids, self.table)  # (n, T, C)
        hidden = F.gelu(nn.checkpoint(self.first, x) if self.checkpoint else self.first(x))
        x = self.norm(x + self.second(self.dropout(hidden)))
        chosen = (ids == 0)[..., None]
        if chosen.any():  # on some ranks
            x = F.where(chosen, x * self.sometimes, x)
        return F.cross_entropy(F.linear(x, self.table), targets)


def net(dtype="float64", **options):
    mg.manual_seed(7)
    return Net(**options).to(dtype=dtype)


def batch(n, seed=0, ignored=0.0):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(VOCABULARY, size=(2, n, 3))
    targets[rng.random((n, 3)) < ignored] = -100
    return ids, targets


def assert_near(got, expected, rtol):
    """Equal to within rtol of the largest number of each array."""
    for name, p in expected.named_parameters():
        theirs = dict(got.named_parameters())[name]
        for a, b in [(theirs.data, p.data), (theirs.grad, p.grad)]:
            assert (a is None) == (b is None), name
            if b is not None:
                np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(), err_msg=name)


def adamw(model):
    params = [*model.parameters()]
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}]
    return optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def muon(model):
    matrices = [model.first.weight, model.second.weight]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return optim.CombinedOptimizer(optim.Muon(matrices, lr=0.02), optim.AdamW(others, lr=0.01))


def train(loss, optimizer, steps, rows, max_norm=np.inf, accumulate=1, ignored=0.0):
    losses = []
    for step in range(steps):
        for i in range(accumulate):
            value = loss(*batch(rows, accumulate * step + i, ignored)) / accumulate
            value.backward()
            losses.append(value.item())
        optimizer.clip_grad_norm(max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return losses


COUNTED = {"weights": lambda ids, targets: (targets != -100).sum()}


def compare(
    ranks,
    steps=50,
    rows=7,
    rtol=1e-12,
    make=adamw,
    dtype="float64",
    options=None,
    model_options=None,
    loss_rtol=None,
    **how,
):
    """Train on the ranks and in one process."""
    one, several = net(dtype, **(model_options or {})), net(dtype, **(model_options or {}))
    expected = train(one.loss, make(one), steps, rows, **how)
    with DistributedDataParallel(several, several.loss, ranks, **(options or {})) as parallel:
        losses = train(parallel, make(several), steps, rows, **how)
    np.testing.assert_allclose(losses, expected, rtol=loss_rtol or rtol)
    assert_near(several, one, rtol)
    assert len(set(ranks.share(sum(float(p.data.sum()) for p in several.parameters())))) == 1


def check_50_steps_of_adamw(ranks):
    compare(ranks, max_norm=0.5)


def check_50_steps_of_muon(ranks):
    compare(ranks, make=muon)


def check_many_buckets(ranks):
    compare(ranks, options={"bucket_bytes": 1})


def check_accumulation(ranks):
    compare(ranks, accumulate=3, steps=20)


def check_token_weighted_means(ranks):
    compare(ranks, ignored=0.6, steps=30, options=COUNTED)


def check_fewer_rows_than_ranks(ranks):
    compare(ranks, rows=1, steps=10)


def check_a_checkpointed_layer(ranks):
    compare(ranks, model_options={"checkpoint": True}, steps=5)


def check_50_steps_in_float32(ranks):
    """The orthogonalization of Muon makes rounding errors larger: its weights differ more, and the losses do not."""
    compare(ranks, dtype="float32", rtol=1e-6, max_norm=0.5)
    compare(ranks, dtype="float32", rtol=3e-5, loss_rtol=1e-6, make=muon)


def check_float16(ranks):
    """Added up, and accumulated, in float32. One process rounds each gradient to 16 bits, so it is less exact."""
    one, several = net("float16"), net("float16")
    with DistributedDataParallel(several, several.loss, ranks) as parallel:
        for loss, model in [(one.loss, one), (parallel, several)]:
            for seed in range(3):
                optim.widen_gradients(model.parameters())
                loss(*batch(6, seed)).backward()
    assert {p.grad.dtype for p in several.parameters() if p.grad is not None} == {np.dtype("float32")}
    assert_near(several, one, 4e-3)
    adamw(several).step()


def check_rows_that_count_for_nothing(ranks):
    """The last rank has no targets: its loss is NaN, and its share is 0. Without any target, the whole loss is NaN."""
    one, several = net(), net()
    ids, targets = np.maximum(batch(ranks.size), 1)
    targets[-1] = -100
    with DistributedDataParallel(several, several.loss, ranks, **COUNTED) as parallel:
        for counted in (targets, np.full_like(targets, -100)):
            losses = [loss(ids, counted) for loss in (one.loss, parallel)]
            np.testing.assert_allclose(*(loss.item() for loss in losses), rtol=1e-12)
            for loss in losses:
                loss.backward()
            assert_near(several, one, 1e-12)


def check_retain_graph(ranks):
    one, several = net(), net()
    with DistributedDataParallel(several, several.loss, ranks) as parallel:
        for loss in (one.loss(*batch(5)), parallel(*batch(5))):
            loss.backward(retain_graph=True)
            loss.backward()
            with pytest.raises(mg.AutogradError, match="second time"):
                loss.backward()
    assert_near(several, one, 1e-12)


def check_an_earlier_loss_can_still_go_backward(ranks):
    """Also after the `with` block: the buckets are made again, and the weights stay."""
    one, several = net(), net()
    with DistributedDataParallel(several, several.loss, ranks) as parallel:
        first, second = (parallel(*batch(5, seed)) for seed in range(2))
    second.backward()
    first.backward()
    for seed in range(2):
        one.loss(*batch(5, seed)).backward()
    assert_near(several, one, 1e-12)


def check_an_error_on_all_ranks_closes_and_the_next_loss_starts_again(ranks):
    one, several = net(), net()

    def loss(ids, targets):
        if several.training:
            raise ZeroDivisionError
        return several.loss(ids, targets)

    parallel = DistributedDataParallel(several, loss, ranks)
    with pytest.raises(ZeroDivisionError):
        parallel(*batch(5))
    several.eval()
    parallel(*batch(5)).backward()
    one.loss(*batch(5)).backward()
    assert_near(several, one, 1e-12)


def check_parameters_that_are_frozen_and_released(ranks):
    one, several = net(), net()
    with DistributedDataParallel(several, several.loss, ranks) as parallel:
        for frozen in (True, False):
            for loss, model in [(one.loss, one), (parallel, several)]:
                model.table.requires_grad = not frozen
                loss(*batch(5)).backward()
            assert (several.table.grad is None) == frozen
    assert_near(several, one, 1e-12)


def check_no_sync(ranks):
    one, several = net(), net()
    with DistributedDataParallel(several, several.loss, ranks) as parallel:
        sent = parallel.communication.collectives
        with parallel.no_sync():
            parallel(*batch(5, 0)).backward()
        assert parallel.communication.collectives == sent + 1  # of the loss
        parallel(*batch(5, 1)).backward()
    for seed in range(2):
        one.loss(*batch(5, seed)).backward()
    assert_near(several, one, 1e-12)


def check_terms_outside_count_once(ranks):
    one, several = net(), net()
    with DistributedDataParallel(several, several.loss, ranks) as parallel:
        for loss, model in [(one.loss, one), (parallel, several)]:
            for seed in range(2):
                before, after = (model.table**2).sum(), (model.first.weight**2).sum()
                (before + loss(*batch(5, seed)) * 0.5 + after).backward()
    assert_near(several, one, 1e-12)


def check_no_grad(ranks):
    one, several = net(), net()
    with DistributedDataParallel(several, several.loss, ranks) as parallel, mg.no_grad():
        loss = parallel(*batch(5))
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(one.loss(*batch(5)).item(), rel=1e-12)


def check_rank_0_has_the_weights(ranks):
    model = net()
    for p in model.parameters():
        p.data += ranks.rank
    with DistributedDataParallel(model, model.loss, ranks):
        assert_near(model, net(), 0)


def check_dropout_differs_but_the_generators_stay_equal(ranks):
    model = net(dropout=0.5)
    state = mg.random.get_state()
    with DistributedDataParallel(model, model.loss, ranks) as parallel:
        ids, targets = (np.repeat(x[:1], ranks.size, axis=0) for x in batch(1))
        mg.random.set_state(state)
        first, second = parallel(ids, targets).item(), parallel(ids, targets).item()
        after = mg.random.get_state()
        mg.random.set_state(state)
        with mg.random.derived(ranks.rank):
            own = ranks.share(model.loss(ids[:1], targets[:1]).item())
    assert len(set(own)) == ranks.size
    assert first != second
    assert first == pytest.approx(np.mean(own), rel=1e-12)
    assert ranks.share(after) == [after] * ranks.size


def check_without_dropout_nothing_is_drawn(ranks):
    model = net()
    state = mg.random.get_state()
    with DistributedDataParallel(model, model.loss, ranks) as parallel:
        parallel(*batch(4)).backward()
    assert mg.random.get_state() == state
