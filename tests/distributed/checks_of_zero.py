"""Checks of `ZeroRedundancyOptimizer` that run on several ranks; see test_training.py."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import optim
from minigrad.distributed import Communicator, DistributedDataParallel, ZeroRedundancyOptimizer

from .checks_of_ddp import COUNTED, adamw, assert_near, batch, muon, net, train


def sgd(model):
    return optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def both(ranks, make, dtype="float64", steps=20, options=None, **how):
    """What the ranks trained with a sharded optimizer and with the whole one: (model, optimizer, losses) of each."""
    trained = []
    for sharded in (True, False):
        model = net(dtype)
        with DistributedDataParallel(model, model.loss, ranks, **(options or {})) as parallel:
            optimizer = make(model)
            if sharded:
                optimizer = ZeroRedundancyOptimizer(optimizer, parallel)
            losses = train(parallel, optimizer, steps, 7, **how)
        trained.append((model, optimizer, losses))
    return trained


def same_bits(model, other):
    return all((p.data == q.data).all() for p, q in zip(model.parameters(), other.parameters(), strict=True))


def check_same_weights(ranks):
    for make in (sgd, adamw, muon):
        (model, _, losses), (whole, _, expected) = both(ranks, make, max_norm=0.5)
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
        assert_near(model, whole, 1e-12)


def check_same_bits_of_two_ranks_without_clipping(ranks):
    """The sum of two numbers does not depend on their order, and nothing else differs."""
    for make in (adamw, muon):
        (model, *_), (whole, *_) = both(ranks, make, steps=5)
        assert ranks.size > 2 or same_bits(model, whole)


def check_accumulation_and_many_buckets(ranks):
    (model, *_), (whole, *_) = both(ranks, adamw, accumulate=3, steps=5, options={"bucket_bytes": 1})
    assert_near(model, whole, 1e-12)


def check_token_weighted_means_in_one_process(ranks):
    """Against the optimizer itself, in one process."""
    model, one = net(), net()
    with DistributedDataParallel(model, model.loss, ranks, **COUNTED) as parallel:
        train(parallel, ZeroRedundancyOptimizer(muon(model), parallel), 5, 7, ignored=0.5)
    train(one.loss, muon(one), 5, 7, ignored=0.5)
    assert_near(model, one, 1e-12)


def check_memory_is_shared_out(ranks):
    (model, optimizer, _), (_, whole, _) = both(ranks, adamw, steps=1)
    needed = sum(array.nbytes for kept in whole.state for array in kept.values())
    held = ranks.share(optimizer.state_bytes())
    assert sum(held) == needed
    assert max(held) <= needed / ranks.size + 2 * 8 * 32 * ranks.size  # two moments in float64, to whole blocks of 32
    (model, optimizer, _), _ = both(ranks, muon, steps=1)
    held = ranks.share(sum(p.size for p in optimizer.shards[0].part.params))
    assert sorted(held, reverse=True) == [model.first.weight.size, model.second.weight.size, 0][: ranks.size]


def check_half_precision_has_masters_of_its_part(ranks):
    (model, optimizer, _), (whole, plain, _) = both(ranks, adamw, dtype="float16", steps=3, max_norm=0.5)
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        np.testing.assert_allclose(p.data.astype("float64"), q.data.astype("float64"), rtol=2e-3, atol=2e-3)
    masters, expected = optimizer.masters(), plain.masters()
    names = {p: name for name, p in model.named_parameters()}
    assert {names[p] for p in masters} == {name for name, p in whole.named_parameters() if p in expected}
    assert {array.dtype for array in masters.values()} == {np.dtype("float32")}
    exact = {p: p.data.astype("float32") + 2.0**-14 for p in model.parameters()}
    optimizer.start_masters(exact)
    for p, master in optimizer.masters().items():
        np.testing.assert_array_equal(master, exact[p])


def check_loss_scaling(ranks):
    """A step whose gradients overflow on any rank is skipped on all; the others are those without scaling."""
    norms = []
    for scaler in (None, optim.GradScaler(scale=2.0**60)):
        model = net("float32")
        with DistributedDataParallel(model, model.loss, ranks) as parallel:
            optimizer = ZeroRedundancyOptimizer(adamw(model), parallel)
            scale = 1.0 if scaler is None else scaler.scale
            (parallel(*batch(7)) * scale).backward()
            norms.append(optimizer.clip_grad_norm(1.0, scale))
            assert scaler is None or scaler.update(norms[-1])
            optimizer.step()
            optimizer.zero_grad()
            with np.errstate(all="ignore"):
                (parallel(*batch(7)) * np.inf).backward()
            assert not optim.GradScaler().update(optimizer.clip_grad_norm(1.0))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def check_the_state_is_whole_and_resumes_on_any_number_of_ranks(ranks):
    """10 steps on all ranks, 10 on one; or 10 on one, 10 on all. Against 20 steps in one process."""
    for make in (adamw, muon):
        one = net()
        whole = make(one)
        train(one.loss, whole, 10, 7)
        middle, weights = whole.state_dict(), {name: p.data.copy() for name, p in one.named_parameters()}
        model = net()
        with DistributedDataParallel(model, model.loss, ranks) as parallel:
            optimizer = ZeroRedundancyOptimizer(make(model), parallel)
            train(parallel, optimizer, 10, 7)
            state = optimizer.state_dict()
            assert state.keys() == middle.keys()
            for name, value in middle.items():
                np.testing.assert_allclose(state[name].data, value.data, rtol=1e-10, atol=1e-13, err_msg=name)
            fewer, alone = net(), make(net())
            fewer.load_state_dict(model.state_dict())
            alone = make(fewer)
            alone.load_state_dict(state)
            train(fewer.loss, alone, 10, 5)
            model.load_state_dict(weights)
            optimizer.load_state_dict(middle)
            train(parallel, optimizer, 10, 5)
        train(one.loss, whole, 10, 5)
        assert_near(fewer, one, 1e-12)
        assert_near(model, one, 1e-12)


def check_a_state_of_another_optimizer_changes_nothing(ranks):
    model = net()
    with DistributedDataParallel(model, model.loss, ranks) as parallel:
        optimizer = ZeroRedundancyOptimizer(muon(model), parallel)
        train(parallel, optimizer, 2, 7)
        before = optimizer.state_dict()
        with pytest.raises(ValueError, match="load_state_dict"):
            optimizer.load_state_dict({**before, "1.0.m": mg.Tensor([1.0])})
        after = optimizer.state_dict()
    assert before.keys() == after.keys()
    assert all((before[name].data == after[name].data).all() for name in before)


def check_settings_reach_the_parts(ranks):
    model = net()
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    with DistributedDataParallel(model, model.loss, ranks) as parallel:
        optimizer = ZeroRedundancyOptimizer(muon(model), parallel)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        train(parallel, optimizer, 2, 7)
    assert all((p.data == before[name]).all() for name, p in model.named_parameters())


def check_a_parameter_with_a_new_array_is_taken_in(ranks):
    model, one = net(), net()
    with DistributedDataParallel(model, model.loss, ranks) as parallel:
        optimizer = ZeroRedundancyOptimizer(adamw(model), parallel)
        whole = adamw(one)
        for _ in range(2):
            train(parallel, optimizer, 1, 7)
            train(one.loss, whole, 1, 7)
            model.table.data, one.table.data = model.table.data * 2, one.table.data * 2
    assert_near(model, one, 1e-12)


def check_gradients_that_were_not_added_up_are_refused(ranks):
    model = net()
    with DistributedDataParallel(model, model.loss, ranks) as parallel:
        optimizer = ZeroRedundancyOptimizer(adamw(model), parallel)
        with parallel.no_sync():
            parallel(*batch(7)).backward()
        with pytest.raises(mg.AutogradError, match="not added up over the ranks"):
            optimizer.step()
        parallel(*batch(7)).backward()
        optimizer.step()
        with pytest.raises(ValueError, match="it has 2 of them, and 0 others"):
            ZeroRedundancyOptimizer(optim.AdamW([model.table, model.unused], lr=0.1), parallel)


def check_of_one_rank_it_is_the_optimizer(ranks):
    model, one = net(), net()
    parallel = DistributedDataParallel(model, model.loss, Communicator())
    optimizer, plain = ZeroRedundancyOptimizer(adamw(model), parallel), adamw(one)
    assert train(parallel, optimizer, 3, 5) == train(one.loss, plain, 3, 5)
    assert same_bits(model, one)
    assert optimizer.clip_grad_norm(1.0) == 0.0
    assert optimizer.state_dict().keys() == plain.state_dict().keys()
    assert optimizer.state_bytes() == sum(a.nbytes for kept in plain.state for a in kept.values())
