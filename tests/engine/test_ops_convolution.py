"""Convolution and pooling: gradients over generated shapes, values against loops over single pixels, edges, errors."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad import nn
from minigrad.ops.convolution import Windows, col2im, im2col
from tests.checks import forward_and_backward
from tests.shapes import distinct, layouts, normal, seeds

# The same with loops, pixel by pixel


def seen(image, p, q, kernel, stride, padding, dilation=(1, 1)):
    """The pixels of an image (H, W) that output (p, q) sees, by their place in its window. Padding is left out."""
    pixels = {}
    for i, j in np.ndindex(*kernel):
        u = stride[0] * p + dilation[0] * i - padding[0]
        v = stride[1] * q + dilation[1] * j - padding[1]
        if 0 <= u < image.shape[0] and 0 <= v < image.shape[1]:
            pixels[i, j] = image[u, v]
    return pixels


def looped(image, kernel, stride, padding, dilation, combine):
    """combine(pixels) for all outputs of an image, as long as their windows lie inside the padded image."""
    axes = zip(image.shape, kernel, stride, padding, dilation, strict=True)
    rows, columns = (
        [at for at in range(n + 2 * p) if s * at + d * (k - 1) < n + 2 * p] for n, k, s, p, d in axes
    )  # the outputs along each axis
    values = [[combine(seen(image, p, q, kernel, stride, padding, dilation)) for q in columns] for p in rows]
    return np.array(values)


def looped_conv2d(x, weight, bias, stride, padding, dilation, groups):
    y = []
    for image in x:  # (C, H, W)
        for o, kernel in enumerate(weight):
            first = o // (len(weight) // groups) * len(kernel)
            y.append(
                bias[o]
                + sum(
                    looped(
                        image[first + c],
                        kernel.shape[1:],
                        stride,
                        padding,
                        dilation,
                        lambda pixels, w=kernel[c]: sum(w[place] * pixel for place, pixel in pixels.items()),
                    )
                    for c in range(len(kernel))
                )
            )
    return np.reshape(y, (len(x), len(weight), *y[0].shape))


def looped_pooling(x, kernel, stride, padding, combine):
    y = [looped(image, kernel, stride, padding, (1, 1), combine) for image in x.reshape(-1, *x.shape[-2:])]
    return np.reshape(y, (*x.shape[:-2], *y[0].shape))


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def geometries(draw, dilated=True):
    """Settings of a window, and an image that is large enough for it."""
    kernel, stride = draw(pairs), draw(pairs)
    dilation = draw(pairs) if dilated else (1, 1)
    padding = tuple(draw(st.integers(0, 2 if dilated else k // 2)) for k in kernel)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    image = tuple(n + draw(st.integers(0, 3)) for n in least)
    return image, kernel, stride, padding, dilation


@st.composite
def convolutions(draw):
    """Inputs and settings of conv2d; of the images, `layout` gives the view that is used."""
    image, kernel, stride, padding, dilation = draw(geometries())
    groups, c, o = (draw(st.integers(1, 2)) for _ in range(3))
    layout, seed = draw(layouts), draw(seeds)
    x = normal(layout.base_shape((draw(st.integers(0, 2)), groups * c, *image)), seed)
    return x, normal((groups * o, c, *kernel), seed + 1), (stride, padding, dilation, groups), layout


@settings(max_examples=40)
@given(convolutions())
def test_gradients_of_conv2d(drawn):
    x, weight, settings, layout = drawn
    bias = normal(weight.shape[:1], 2)
    mg.gradcheck(lambda x, w, b: F.conv2d(layout.view(x), w, b, *settings), [x, weight, bias])


@given(convolutions())
def test_conv2d_equals_its_loops(drawn):
    x, weight, settings, layout = drawn
    x, bias = layout.view(x), normal(weight.shape[:1], 2)
    y = F.conv2d(x, weight, bias, *settings).data
    if len(x):
        np.testing.assert_allclose(y, looped_conv2d(x, weight, bias, *settings), rtol=1e-9, atol=1e-12)
    else:
        assert y.shape[:2] == (0, len(weight))


@settings(max_examples=30)
@given(geometries(dilated=False), st.integers(0, 2), layouts, st.booleans(), seeds)
def test_gradients_of_pooling(geometry, channels, layout, include, seed):
    image, *window, _ = geometry
    shape = layout.base_shape((channels, *image))
    mg.gradcheck(lambda x: F.max_pool2d(layout.view(x), *window), distinct(shape, seed))
    mg.gradcheck(lambda x: F.avg_pool2d(layout.view(x), *window, count_include_pad=include), normal(shape, seed))


@given(geometries(dilated=False), seeds)
def test_pooling_equals_its_loops(geometry, seed):
    image, *window, _ = geometry
    x, places = normal((2, *image), seed), math.prod(window[0])
    for function, combine in (
        (F.max_pool2d, lambda pixels: max(pixels.values())),
        (F.avg_pool2d, lambda pixels: sum(pixels.values()) / places),
        (lambda *a: F.avg_pool2d(*a, count_include_pad=False), lambda pixels: np.mean(list(pixels.values()))),
    ):
        np.testing.assert_allclose(function(x, *window).data, looped_pooling(x, *window, combine), rtol=1e-12)


@given(geometries(), seeds)
def test_col2im_is_the_adjoint_of_im2col(geometry, seed):
    """<im2col(x), c> = <x, col2im(c)> for all x and c."""
    image, kernel, stride, padding, dilation = geometry
    output = F.conv2d(np.zeros((1, *image)), np.zeros((1, 1, *kernel)), None, stride, padding, dilation).shape[-2:]
    windows = Windows(image, output, kernel, stride, padding, dilation)
    x, columns = normal((2, *image), seed), normal((2, *kernel, *output), seed + 1)
    assert np.sum(im2col(x, windows) * columns) == pytest.approx(np.sum(x * col2im(columns, windows)), abs=1e-9)


# What it is made for


def test_a_kernel_of_one_pixel_is_a_linear_layer_over_channels():
    x, weight, bias = normal((2, 4, 3, 5)), normal((6, 4), 1), normal((6,), 2)
    y = F.conv2d(x, weight[:, :, None, None], bias)
    np.testing.assert_allclose(y.data, F.linear(x.transpose(0, 2, 3, 1), weight, bias).data.transpose(0, 3, 1, 2))


def test_a_kernel_as_large_as_the_image_is_a_linear_layer():
    x, weight = normal((2, 4, 3, 5)), normal((6, 4, 3, 5), 1)
    y = F.conv2d(x, weight)
    np.testing.assert_allclose(y.data[:, :, 0, 0], F.linear(x.reshape(2, -1), weight.reshape(6, -1)).data)


def test_a_shifted_image_has_a_shifted_result():
    x, weight = np.zeros((1, 8, 9)), normal((2, 1, 3, 3), 1)
    x[:, 2:5, 2:6] = normal((1, 3, 4))
    y, shifted = (F.conv2d(image, weight, padding=1).data for image in (x, np.roll(x, (1, 2), axis=(1, 2))))
    np.testing.assert_allclose(shifted, np.roll(y, (1, 2), axis=(1, 2)), atol=1e-12)


def test_axes_before_the_channels_are_all_images():
    x, weight = normal((2, 3, 4, 5, 6)), normal((2, 4, 3, 3), 1)
    y = F.conv2d(x, weight).data
    assert y.shape == (2, 3, 2, 3, 4)
    np.testing.assert_allclose(y[1, 2], F.conv2d(x[1, 2], weight).data, rtol=1e-12)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (2, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_keeps_the_size_and_valid_pads_nothing(kernel, dilation):
    weight = normal((3, 2, *np.broadcast_to(kernel, 2)))
    x = normal((2, 12, 11))
    assert F.conv2d(x, weight, padding="same", dilation=dilation).shape == (3, 12, 11)
    valid, plain = (F.conv2d(x, weight, padding=padding, dilation=dilation).data for padding in ("valid", 0))
    np.testing.assert_array_equal(valid, plain)


def test_same_pads_the_end_by_the_larger_half():
    y = F.conv2d(np.array([[[1.0, 2.0, 4.0]]]), np.array([[[[1.0, 10.0]]]]), padding="same")
    np.testing.assert_array_equal(y.data, [[[21, 42, 4]]])


# Ties, infinities and what is no number


def chosen(x, *window):
    """The gradient of a max pool: how often each pixel was chosen."""
    (y,), _ = forward_and_backward(lambda x: F.max_pool2d(x, *window), [np.array(x, float)])
    leaf = mg.Tensor(np.array(x, float), requires_grad=True)
    F.max_pool2d(leaf, *window).backward(np.ones(y.shape))
    return leaf.grad.tolist()


def test_the_first_of_equal_pixels_gets_the_gradient():
    assert chosen([[7, 7], [7, 7]], 2) == [[1, 0], [0, 0]]
    assert chosen([[1, 7], [7, 7]], 2) == [[0, 1], [0, 0]]
    assert chosen([[7, 7, 7]], (1, 2), 1) == [[1, 1, 0]]
    assert chosen([[1, 2, 1]], (1, 2), 1) == [[0, 2, 0]]


def test_pixels_of_minus_infinity_are_larger_than_padding():
    assert chosen(np.full((2, 2), -np.inf), 2, 2, 1) == [[1, 1], [1, 1]]
    assert chosen([[-np.inf, -np.inf]], 1, 1) == [[1, 1]]


def test_a_nan_is_larger_than_all_numbers():
    x = np.array([[[np.nan, np.inf], [1, 2]], [[3, np.nan], [np.nan, np.inf]]])
    assert np.isnan(F.max_pool2d(x, 2).data).all()
    assert chosen(x, 2) == [[[1, 0], [0, 0]], [[0, 0], [1, 0]]]  # the last NaN, as in PyTorch
    assert F.max_pool2d(np.array([[np.inf, 1.0]]), (1, 2)).data == np.inf


def test_an_infinite_gradient_of_a_max_pool_leaves_other_pixels_alone():
    x = mg.Tensor(np.array([[1.0, 2.0]]), requires_grad=True)
    F.max_pool2d(x, (1, 2)).backward([[np.inf]])
    assert x.grad.tolist() == [[0, np.inf]]


def test_half_precision_is_added_up_in_single():
    """4096 products of 1: in float16 the sum of ones stops at 2048."""
    x, weight = np.ones((64, 8, 8), np.float16), np.ones((1, 64, 8, 8), np.float16)
    (y,), (dx, dweight) = forward_and_backward(F.conv2d, [x, weight])
    assert y.dtype == dx.dtype == dweight.dtype == np.float16
    assert y == 4096
    assert F.avg_pool2d(np.full((1, 80, 80), 16, np.float16), 80).data == 16  # their sum would be infinite


# Errors: one line, with the operation, what it expected and what it got

IMAGE, WEIGHT = np.zeros((2, 4, 5, 6)), np.zeros((3, 4, 2, 2))
ERRORS = {
    "two axes": (lambda: F.conv2d(IMAGE[0, 0], WEIGHT), r"Conv2d: expected x \(…, C, H, W\).*; got \(5, 6\) float64"),
    "weight of three axes": (lambda: F.conv2d(IMAGE, WEIGHT[0]), r"expected .*weight \(O, C / groups, kh, kw\)"),
    "empty weight": (lambda: F.conv2d(IMAGE, np.zeros((3, 4, 0, 2))), r"expected .*weight .*; got .*\(3, 4, 0, 2\)"),
    "bias": (lambda: F.conv2d(IMAGE, WEIGHT, np.zeros(4)), r"expected .*bias \(O,\) or None; got .*\(4,\) float64"),
    "channels": (
        lambda: F.conv2d(IMAGE[:, :3], WEIGHT),
        r"Conv2d: expected x with C = 4 channels for C / groups = 4.*\(2, 3, 5, 6\)",
    ),
    "channels of groups": (lambda: F.conv2d(IMAGE, WEIGHT, groups=2), "expected x with C = 8 channels"),
    "outputs of groups": (lambda: F.conv2d(IMAGE, WEIGHT[:, :2], groups=2), "expected .*O divisible by groups"),
    "no groups": (lambda: F.conv2d(IMAGE, WEIGHT, groups=0), "conv2d: expected groups of at least 1, got 0"),
    "kernel larger than the image": (
        lambda: F.conv2d(IMAGE[..., :1], WEIGHT),
        r"Conv2d: expected an image that, with its padding, is at least as large as the dilated kernel; got .*5, 1\)",
    ),
    "dilated kernel larger": (lambda: F.conv2d(IMAGE, WEIGHT, dilation=5), "at least as large as the dilated kernel"),
    "no pixels": (lambda: F.conv2d(IMAGE[..., :0], WEIGHT, padding=3), "expected an image"),
    "stride": (lambda: F.conv2d(IMAGE, WEIGHT, stride=0), "conv2d: expected stride as one or two whole .* 1, got 0"),
    "three strides": (lambda: F.conv2d(IMAGE, WEIGHT, stride=(1, 1, 1)), r"expected stride as .*, got \(1, 1, 1\)"),
    "padding": (lambda: F.conv2d(IMAGE, WEIGHT, padding=-1), "conv2d: expected padding as .* of at least 0, got -1"),
    "padding of another name": (
        lambda: F.conv2d(IMAGE, WEIGHT, padding="full"),
        """expected padding="same", "valid" """,
    ),
    "same with a stride": (lambda: F.conv2d(IMAGE, WEIGHT, None, 2, "same"), "expected a stride of 1 for padding="),
    "half a pixel": (lambda: F.conv2d(IMAGE, WEIGHT, dilation=1.5), "conv2d: expected dilation as .*, got 1.5"),
    "pooling one axis": (
        lambda: F.max_pool2d(np.zeros(3), 2),
        r"MaxPool2d: expected x \(…, H, W\); got \(3,\) float64",
    ),
    "pooling with much padding": (
        lambda: F.avg_pool2d(IMAGE, 3, padding=2),
        r"AvgPool2d: expected a padding of at most half of the kernel.*; got .*\(3, 3\), \(3, 3\), \(2, 2\)",
    ),
    "pooling a small image": (lambda: F.max_pool2d(IMAGE, 7), "MaxPool2d: expected an image .* as large as"),
    "pooling of nothing": (lambda: F.max_pool2d(IMAGE, 0), "max_pool2d: expected kernel_size as .* 1, got 0"),
    "groups of a layer": (lambda: nn.Conv2d(4, 5, 3, groups=2), "Conv2d: expected channels that are multiples of gro"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_expected_and_what_came(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_integers_and_mixed_dtypes_are_refused():
    for call in (lambda x: F.conv2d(x, x), lambda x: F.max_pool2d(x, 1), lambda x: F.avg_pool2d(x, 1)):
        with pytest.raises(TypeError, match="expected floating-point images, not int64; got "):
            call(np.zeros((1, 1, 2, 2), np.int64))
    with pytest.raises(TypeError, match="conv2d: expected inputs of one dtype, got float32 and float64"):
        F.conv2d(IMAGE.astype(np.float32), WEIGHT)


# Layers


def test_layers_of_a_small_network():
    mg.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 2, bias=False),
        nn.AvgPool2d(3),
        nn.Flatten(),
    )
    y = model(mg.Tensor(normal((5, 3, 8, 8)).astype(np.float32)))
    assert y.shape == (5, 4)
    y.sum().backward()
    assert {name: p.shape for name, p in model.named_parameters()} == {
        "0.weight": (8, 3, 3, 3),
        "0.bias": (8,),
        "3.weight": (4, 8, 2, 2),
    }
    assert all(np.abs(p.grad).max() > 0 for p in model.parameters())


def test_conv2d_is_initialized_within_one_over_the_root_of_what_an_output_sees():
    layer = nn.Conv2d(32, 64, (3, 5), groups=2)
    for parameter in layer.parameters():
        bound = 1 / math.sqrt(16 * 3 * 5)
        assert 0.9 * bound < parameter.data.max() <= bound
        assert -bound <= parameter.data.min() < -0.9 * bound


def test_training_learns_the_kernel_that_made_the_images():
    rng = np.random.default_rng(0)
    true, x = rng.standard_normal((1, 1, 3, 3)).astype("f"), rng.standard_normal((32, 1, 6, 6)).astype("f")
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    y = F.conv2d(x, true, padding=1)
    optimizer = mg.optim.SGD(layer.parameters(), lr=0.3)
    for _ in itertools.repeat(None, 60):
        loss = ((layer(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(layer.weight.data, true, atol=1e-3)
