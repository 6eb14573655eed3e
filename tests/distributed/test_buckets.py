"""Buckets and their parts, without other ranks: a fake communicator notes what is started."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad import nn
from minigrad.distributed import Communicator, DistributedDataParallel
from minigrad.distributed.buckets import ALIGNMENT, Communication, split_into_buckets
from minigrad.distributed.zero import ShardedBucket
from tests.fakes.ranks import FakeCommunicator


class Note(mg.Function):
    """The identity, which notes that its backward has run."""

    @staticmethod
    def forward(ctx, x, events, name):
        ctx.events, ctx.name = events, name
        return x + 0

    @staticmethod
    def backward(ctx, g):
        ctx.events.append(ctx.name)
        return g


class Net(nn.Module):
    def __init__(self, events):
        self.layers, self.events = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)]), events

    def loss(self, x):
        x = mg.Tensor(x)
        for i, layer in enumerate(self.layers):
            x = Note.apply(layer(x), self.events, f"backward of {i}")
        return (x * x).mean()


ROWS = np.ones((2, 4), "float32")


def test_a_bucket_is_sent_while_the_backward_of_earlier_layers_still_runs():
    events = []
    model = Net(events)
    with DistributedDataParallel(model, model.loss, FakeCommunicator(events=events), bucket_bytes=1) as parallel:
        loss = parallel(ROWS)
        events.clear()
        loss.backward()
    # a layer sends its 16 numbers (32 with the gap) when it is done; at the end, which of the 3 gradients exist
    assert events == ["backward of 2", 32, "backward of 1", 32, "backward of 0", 32, 3]


def test_buckets_start_in_their_order_whatever_is_complete_first():
    """The last layer is used before the first one too, so its gradient is complete last, and all wait for it."""
    events = []
    model = Net(events)

    def tied(x):
        x = Note.apply(model.layers[2](mg.Tensor(x)), events, "backward of 2 again")
        for i, layer in enumerate(model.layers):
            x = Note.apply(layer(x), events, f"backward of {i}")
        return x.mean()

    with DistributedDataParallel(model, tied, FakeCommunicator(events=events), bucket_bytes=1) as parallel:
        value = parallel(ROWS)
        events.clear()
        value.backward()
    names = [f"backward of {name}" for name in ("2", "1", "0", "2 again")]
    assert events == [*names, 32, 32, 32, 3]


def test_a_small_model_is_one_bucket():
    events = []
    model = Net(events)
    with DistributedDataParallel(model, model.loss, FakeCommunicator(events=events)) as parallel:
        parallel(ROWS).backward()
    assert events[-2:] == [3 * 32, 3]


def test_a_gradient_that_comes_after_its_bucket_was_sent_is_an_error():
    """A function given to checkpoint hides which parameters it uses."""
    model = Net([])

    def loss(x):
        hidden = nn.checkpoint(lambda x: F.tanh(model.layers[2](x)), mg.Tensor(x, requires_grad=True))
        return model.layers[2](hidden).mean()

    with DistributedDataParallel(model, loss, FakeCommunicator(), bucket_bytes=1) as parallel:
        value = parallel(ROWS)
        with pytest.raises(
            mg.AutogradError, match=r"shape \(4, 4\) got another gradient after .* Give checkpoint a module"
        ):
            value.backward()


def test_the_other_ranks_do_not_keep_what_was_added_up_before():
    model = Net([])
    for rank in (0, 1):
        with DistributedDataParallel(model, model.loss, FakeCommunicator(rank=rank)) as parallel:
            model.zero_grad()
            sums = []
            for _ in range(2):
                parallel(ROWS).backward()
                sums.append(model.layers[0].weight.grad.copy())
        np.testing.assert_allclose(sums[1], sums[0] * (1 if rank else 2), rtol=1e-6)


def test_one_rank_is_the_loss_itself():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    losses, states = [], []
    parallel = DistributedDataParallel(model, lambda x: model(x).mean(), Communicator())
    for loss in (parallel.loss, parallel):
        mg.manual_seed(3)
        with parallel:
            losses.append(loss(ROWS).item())
        states.append(mg.random.get_state())
    assert losses[0] == losses[1]
    assert states[0] == states[1]


def test_bad_input():
    model = Net([])
    parallel = DistributedDataParallel(model, model.loss, FakeCommunicator())
    with pytest.raises(ValueError, match="DistributedDataParallel: expected arrays with one number of rows"):
        parallel(ROWS, ROWS[:1])
    with pytest.raises(ValueError, match="expected a batch of arrays, got a tensor that requires gradients"):
        parallel(mg.Tensor(ROWS, requires_grad=True))
    with pytest.raises(ValueError, match="DistributedDataParallel: expected parameters on cuda:0, got cpu"):
        DistributedDataParallel(model, model.loss, FakeCommunicator(device="cuda:0"))


def test_the_hidden_share():
    assert Communication().hidden == 0
    assert Communication(seconds=2.0, waited=0.5).hidden == 0.75
    assert Communication(seconds=2.0, waited=2.1).hidden == 0


sizes = st.lists(st.integers(1, 200), min_size=1, max_size=12)


def parameters(sizes, dtypes=("float32",)):
    return [mg.Tensor(np.full(n, i, dtypes[i % len(dtypes)]), requires_grad=True) for i, n in enumerate(sizes)]


@settings(max_examples=50, deadline=None)
@given(sizes=sizes, most=st.integers(1, 2000))
def test_every_parameter_is_in_one_bucket(sizes, most):
    params = parameters(sizes, ("float32", "float64"))
    buckets = split_into_buckets(params, most)
    assert {p for bucket in buckets for p in bucket} == set(params)
    assert sum(map(len, buckets)) == len(params)
    for bucket in buckets:
        assert len({p.dtype for p in bucket}) == 1
        assert len(bucket) == 1 or sum(p.data.nbytes for p in bucket) <= most
    positions = [[i for p in bucket for i, q in enumerate(params) if p is q] for bucket in buckets]
    assert all(inside == sorted(inside, reverse=True) for inside in positions)


@settings(max_examples=50, deadline=None)
@given(sizes=sizes, ranks=st.integers(2, 5), elementwise=st.booleans())
def test_every_element_belongs_to_one_rank(sizes, ranks, elementwise):
    """The pieces have each element once, in the memory of the parameters. Loads differ by the largest at most."""
    params, loads = parameters(sizes), [0] * ranks
    bucket = ShardedBucket(params, FakeCommunicator(ranks), elementwise, loads)
    written = [np.zeros(p.size, int) for p in params]
    for rank in range(ranks):
        for piece in bucket.pieces_of(rank):
            i = next(i for i, p in enumerate(params) if p is piece.parameter)
            written[i][piece.inside] += 1
            np.testing.assert_array_equal(piece.tensor.data, i)
            assert np.may_share_memory(piece.tensor.data, params[i].data)
            part = bucket.weights[rank * bucket.part_length : (rank + 1) * bucket.part_length]
            np.testing.assert_array_equal(piece.in_part(part), piece.of(params[i].data))
            assert elementwise or piece.tensor.shape == params[i].shape
    assert all((count == 1).all() for count in written)
    assert bucket.length == ranks * bucket.part_length
    if elementwise:
        assert bucket.length < sum(sizes) + ALIGNMENT * (len(sizes) + ranks)
    else:
        assert sum(loads) == sum(sizes)
        assert max(loads) - min(loads) <= max(sizes)
