"""Flash attention gives what the operation gives: in the emulator and on a card."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import minigrad as mg
from minigrad.autograd import Context
from minigrad.kernels.cuda import attention, launch
from minigrad.kernels.cuda.philox import draw_dropout
from minigrad.ops.attention import Attention as Reference
from tests.fakes.emulator import emulated, noting_launches
from tests.fakes.emulator.philox import attention_mask, philox


def half_type(name):
    """float16, or bfloat16 where there is ml_dtypes."""
    return np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16


def random_inputs(q_shape, keys, dtype, seed=0):
    """q, k, v and an upstream gradient g, rounded to the dtype."""
    rng = np.random.default_rng(seed)
    k_shape = (*q_shape[:2], keys, q_shape[3])
    return [rng.standard_normal(shape).astype(half_type(dtype)) for shape in (q_shape, k_shape, k_shape, q_shape)]


def run(implementation, q, k, v, g, causal, dropout_p=0.0):
    """y, dq, dk, dv, and the context that was in between."""
    ctx = Context(Reference, (True, True, True, False, False, False))
    y = implementation.forward(ctx, q, k, v, causal, None, dropout_p)
    return [y, *implementation.backward(ctx, g)[:3]], ctx


def run_flash(machine, *arguments, order=0, **more):
    with machine(order):
        return run(attention.FlashAttention, *arguments, **more)


def reference_and_errors(q, k, v, g, causal, dropout=None):
    """The operation's results for the same numbers in float32, and how far off flash attention may be.

    Flash attention computes in float32 but for three things, each rounded to the dtype, which errs by at most u = half
    of its last place: the weights p and ds that go into tensor cores, and its results; delta is computed from the
    rounded y. The errors of products follow: for c = a b with a rounded, at most u |a| |b|.
    """
    u, least = (2.0**-11, 2.0**-25) if q.dtype == np.float16 else (2.0**-8, 0.0)
    q, k, v, g = (x.astype(np.float32) for x in (q, k, v, g))
    with mock.patch.object(mg.random, "dropout_mask", return_value=dropout):
        results, ctx = run(Reference, q, k, v, g, causal, 0.5 if dropout else 0.0)

    def rounded(x):
        return u * abs(x) + least  # float16 has numbers closer to 0 than its smallest exponent can place

    y, scale = results[0], 1 / np.sqrt(q.shape[-1])
    p = ctx.saved[3]
    kept = dropout[0] * dropout[1] if dropout else np.float32(1)
    weights, dp = p * kept, (g @ v.swapaxes(2, 3)) * kept
    delta = (g * y).sum(-1, keepdims=True)
    ds = p * (dp - delta)
    ds_error = rounded(ds) + p * (abs(g) * (rounded(y) + rounded(weights) @ abs(v))).sum(-1, keepdims=True)
    errors = [
        rounded(y) + rounded(weights) @ abs(v),
        rounded(results[1]) + ds_error @ abs(k) * scale,
        rounded(results[2]) + ds_error.swapaxes(2, 3) @ abs(q) * scale,
        rounded(results[3]) + rounded(weights).swapaxes(2, 3) @ abs(g),
    ]
    return results, [1.01 * error + 1e-5 for error in errors]  # and what float32 itself errs


def assert_right(flash, reference, errors):
    for name, ours, theirs, error in zip(("y", "dq", "dk", "dv"), flash, reference, errors, strict=True):
        assert ours.shape == theirs.shape
        off = abs(ours.astype(np.float32) - theirs) / error
        assert off.max() <= 1, f"{name}: {off.max():.2f} of the error that rounding explains, at {np.argmax(off)}"


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "head_size", "causal", "dropout_p", "queries", "keys"),
    [
        ("float16", 64, True, 0.0, 150, 150),  # more than one tile of queries and of keys, the last ones in part
        ("float16", 64, True, 0.0, 40, 100),  # appended to 60 cached keys
        ("float16", 64, True, 0.0, 100, 40),  # 60 queries see nothing
        ("float16", 64, True, 0.0, 2, 1),
        ("bfloat16", 64, False, 0.0, 130, 70),
        ("bfloat16", 64, False, 0.0, 3, 200),
        ("bfloat16", 64, False, 0.0, 128, 64),  # whole tiles
        ("bfloat16", 64, True, 0.2, 100, 100),
        ("float16", 128, True, 0.1, 70, 90),
        ("float16", 128, True, 0.1, 90, 70),
        ("bfloat16", 128, False, 0.0, 65, 33),
        ("float16", 32, False, 0.5, 40, 50),
    ],
)
def test_values_and_gradients(machine, dtype, head_size, causal, dropout_p, queries, keys, order):
    inputs = random_inputs((1, 2, queries, head_size), keys, dtype, seed=queries)
    flash, ctx = run_flash(machine, *inputs, causal, dropout_p, order=order)
    dropout = attention_mask(ctx.dropout, (1, 2, queries, keys)) if dropout_p else None
    assert_right(flash, *reference_and_errors(*inputs, causal, dropout))


def test_scores_too_large_for_exp(machine):
    """The largest score is subtracted: e^900 is no float32."""
    q, k, v, g = random_inputs((1, 1, 70, 64), 70, "float16")
    q, k = q * np.float16(8), k * np.float16(16)
    flash, _ = run_flash(machine, q, k, v, g, True)
    reference, _ = reference_and_errors(q, k, v, g, True)
    for ours, theirs in zip(flash, reference, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=4e-3 * abs(theirs).max())


def test_queries_that_see_nothing_give_zeros_and_get_none(machine):
    inputs = random_inputs((1, 2, 100, 64), 40, "float16")
    (y, dq, dk, dv), _ = run_flash(machine, *inputs, True)
    assert not y[:, :, :60].any()
    assert not dq[:, :, :60].any()
    assert y[:, :, 60:].any(axis=-1).all()
    q, k, v, g = inputs
    g = g.copy()
    g[:, :, :60] = 100  # what reaches them goes nowhere
    (_, _, same_dk, same_dv), _ = run_flash(machine, q, k, v, g, True)
    np.testing.assert_array_equal(dk, same_dk)
    np.testing.assert_array_equal(dv, same_dv)


def test_lse_is_the_log_of_the_sum_of_exponentials_in_base_2(machine):
    q, k, v, g = random_inputs((2, 1, 70, 64), 90, "float16")
    _, ctx = run_flash(machine, q, k, v, g, True)
    s = q.astype(np.float32) @ k.astype(np.float32).swapaxes(2, 3) / 8
    s[..., np.triu(np.ones((70, 90), bool), k=1 + 90 - 70)] = -np.inf
    np.testing.assert_allclose(ctx.saved[4] * np.log(2), np.log(np.exp(s).sum(-1)), rtol=1e-5, atol=1e-5)


def test_packed_inputs_are_used_where_they_lie_and_outputs_lie_as_layers_want_them(machine):
    B, T, H, D = 2, 70, 2, 64
    rng = np.random.default_rng(0)
    packed = rng.standard_normal((B, T, 3 * H * D)).astype(np.float16)
    q, k, v = (part.reshape(B, T, H, D).transpose(0, 2, 1, 3) for part in np.split(packed, 3, axis=2))
    g = rng.standard_normal((B, T, H, D)).astype(np.float16).transpose(0, 2, 1, 3)
    flash, ctx = run_flash(machine, q, k, v, g, True)
    assert all(np.shares_memory(x, packed) for x in ctx.saved[:3])

    dense, _ = run_flash(machine, *(np.ascontiguousarray(x) for x in (q, k, v, g)), True)
    for ours, theirs in zip(flash, dense, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    y, *gradients = flash
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous  # heads side by side: no copy
    base = gradients[0].base.reshape(B, T, 3 * H * D)
    for i, gradient in enumerate(gradients):  # side by side, too, in the place of q, k and v
        np.testing.assert_array_equal(gradient.transpose(0, 2, 1, 3).reshape(B, T, H * D), np.split(base, 3, axis=2)[i])


def test_inputs_that_cannot_be_read_16_bytes_at_a_time_are_copied(machine):
    q, k, v, g = random_inputs((1, 1, 20, 32), 20, "float16")
    expected, _ = run_flash(machine, q, k, v, g, False)
    odd = np.zeros((1, 1, 20, 33), np.float16)[..., 1:]
    odd[...] = k
    fortran = np.asfortranarray(v)
    further = np.zeros(q.size + 1, np.float16)[1:].reshape(q.shape)  # contiguous, but not from a multiple of 16
    further[...] = q
    for ours, theirs in zip(run_flash(machine, further, odd, fortran, g, False)[0], expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_run_gives_the_same_bits_in_any_order_of_threads(machine):
    inputs = random_inputs((1, 2, 140, 64), 140, "float16")
    first, second = ([x.tobytes() for x in run_flash(machine, *inputs, True, order=order)[0]] for order in (0, 1))
    assert first == second


def test_only_gradients_that_are_wanted_are_computed(machine):
    q, k, v, g = random_inputs((1, 1, 20, 64), 20, "float16")
    ctx = Context(Reference, (False, False, True, False, False, False))
    with machine(), noting_launches() as launches:
        attention.FlashAttention.forward(ctx, q, k, v, True, None, 0.0)
        dq, dk, dv, *rest = attention.FlashAttention.backward(ctx, g)
    assert launches == ["attention_forward", "attention_delta", "attention_backward_keys"]
    assert [dq, dk, *rest] == [None] * 5
    assert dv.shape == v.shape


# Dropout


def test_numpy_philox_gives_the_published_numbers():
    """The known answers of Random123 for philox4x32-10: counter, key, result."""
    for line in [
        "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
        "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
    ]:
        words = [int(word, 16) for word in line.split()]
        assert philox(words[:4], words[4:6]).tolist() == words[6:]


def test_philox_on_the_card_is_numpys(machine):
    kernel = """
    extern "C" __global__ void philox_of(const unsigned *counters, const unsigned *key, unsigned *words) {
        const unsigned *c = counters + 4 * threadIdx.x;
        const uint4 result = philox(uint4{c[0], c[1], c[2], c[3]}, uint2{key[0], key[1]});
        unsigned *own = words + 4 * threadIdx.x;
        own[0] = result.x, own[1] = result.y, own[2] = result.z, own[3] = result.w;
    }"""
    text = "".join((launch.FOLDER / name).read_text("utf-8") for name in ("common.cuh", "philox.cuh"))
    rng = np.random.default_rng(0)
    counters, key = rng.integers(2**32, size=(64, 4), dtype=np.uint32), rng.integers(2**32, size=2, dtype=np.uint32)
    words = np.empty_like(counters)
    with machine():
        kernel = SimpleNamespace(name="philox_of", text=f"#define SCALAR_FLOAT32\n{text}{kernel}")
        launch.emulate(kernel, (1,), 64, [counters, key, words], 0)
    np.testing.assert_array_equal(words, philox(counters.T, key).T)


def test_dropout_drops_as_often_as_asked_and_differently_for_every_head_and_key():
    dropout = draw_dropout(0.2)
    kept, scale = attention_mask(dropout, (2, 3, 128, 96))
    assert abs(kept.mean() - 0.8) < 4 * np.sqrt(0.2 * 0.8 / kept.size)
    assert scale == np.float32(65536 / (65536 - round(0.2 * 65536)))
    heads = kept.reshape(6, -1)
    other = attention_mask(draw_dropout(0.2), (2, 3, 128, 96))[0].reshape(6, -1)
    for mask in (*heads[1:], *other):  # independent masks agree where both keep or both drop
        assert abs((heads[0] == mask).mean() - (0.8**2 + 0.2**2)) < 0.02


def test_a_key_is_the_seed_and_the_number_of_the_draw():
    """A state that is restored, when training resumes or a checkpoint is run again, drops the same weights."""
    mg.manual_seed(2**64 + 3)
    assert draw_dropout(0.2)[["seed", "draw"]].tolist() == [(3, 0)]
    state = mg.random.get_state()
    following = draw_dropout(0.2)
    assert following["draw"] == 1
    draw_dropout(0.0)  # draws nothing
    assert mg.random.get_state() == {**state, "gpu": 2}
    mg.random.set_state(state)
    assert draw_dropout(0.2) == following


def test_all_weights_dropped(machine):
    inputs = random_inputs((1, 1, 20, 64), 20, "bfloat16")
    results, _ = run_flash(machine, *inputs, True, 1.0)
    assert not any(x.any() for x in results)


def test_a_graph_that_counts_its_replays_drops_other_weights_every_time(machine, monkeypatch):
    inputs = random_inputs((1, 1, 50, 64), 50, "bfloat16")
    for earlier in (0, 7, 2**40):
        monkeypatch.setattr(attention.counter, "earlier", np.array([earlier], np.uint64))
        mg.manual_seed(2**60 + 5)
        flash, ctx = run_flash(machine, *inputs, True, 0.2)
        dropout = attention_mask(ctx.dropout, (1, 1, 50, 50), earlier)
        assert_right(flash, *reference_and_errors(*inputs, True, dropout))


# Which arguments it is made for


def described(*shape, dtype="float16"):
    """All that `fits` may ask of an array: it holds no numbers."""
    return SimpleNamespace(shape=shape, dtype=np.dtype(dtype), ndim=len(shape), size=int(np.prod(shape)))


@pytest.mark.parametrize(
    ("q", "k", "expected"),
    [
        (described(2, 3, 50, 64), described(2, 3, 60, 64), True),
        (described(2, 3, 50, 48), described(2, 3, 50, 48), True),
        (described(2, 3, 50, 128), described(2, 3, 50, 128), True),
        (described(2, 3, 50, 72), described(2, 3, 50, 72), False),  # head size no multiple of 16
        (described(2, 3, 50, 256), described(2, 3, 50, 256), False),
        (described(2, 3, 1, 64), described(2, 3, 60, 64), False),  # a token of a cached sequence
        (described(2, 6, 50, 64), described(2, 1, 50, 64), False),
        (described(3, 50, 64), described(3, 50, 64), False),
        (described(2, 3, 50, 64), described(2, 3, 0, 64), False),
        (described(2, 3, 50, 64, dtype="float32"), described(2, 3, 50, 64, dtype="float32"), False),
        (described(2, 3, 50, 64), described(2, 3, 50, 64, dtype="float32"), False),
    ],
)
def test_fits(q, k, expected):
    with emulated():
        assert attention.FlashAttention.fits(q, k, k, True, None, 0.0) is expected


def test_a_mask_and_older_cards_are_left_to_the_operation(monkeypatch):
    x = described(2, 3, 50, 64)
    with emulated():
        assert not attention.FlashAttention.fits(x, x, x, False, described(50, 50, dtype=bool), 0.0)
        monkeypatch.setattr(attention, "compute_capability", lambda: 75)
        assert not attention.FlashAttention.fits(x, x, x, False, None, 0.0)


# The code


@pytest.mark.parametrize("head_size", range(16, 129, 16))
def test_the_rows_that_ldmatrix_reads_at_once_lie_in_different_banks(head_size):
    """8 rows of 16 bytes from any column: 32 banks of 4 bytes, each once. The emulator checks every address, too."""
    row_bytes = 2 * (head_size + 8)
    for column in range(0, head_size, 8):
        words = [(row * row_bytes + 2 * column) // 4 + word for row in range(8) for word in range(4)]
        assert sorted(word % 32 for word in words) == list(range(32))


@pytest.mark.parametrize(("head_size", "bytes_at_most"), [(64, 99 * 1024), (128, 99 * 1024)])
def test_shared_memory_is_what_every_card_has(head_size, bytes_at_most):
    """A block may have 163 KB on sm_80, 227 KB on sm_90 and 99 KB on sm_86 and sm_89."""
    used = []
    q = np.zeros((1, 1, 2, head_size), np.float16)
    with mock.patch.object(launch, "emulate", lambda *arguments: used.append(arguments[-1])):
        run(attention.FlashAttention, q, q, q, q, True)
    assert len(used) == 4
    assert max(used) <= bytes_at_most
