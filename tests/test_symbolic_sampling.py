"""Sampling, unpooling and spectral operators over sizes and numbers that only a run knows: at every one they give what ONNX Runtime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from symbolic_models import check, compiled, model_of, random, wave

import tensorsmith as ts
from compiler.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE = "g (float[n, c, h, w] x, float[n, p, q, 2] g0) => (float[n, c, p, q] y) {{ y = GridSample<{}>(x, g0) }}"
SAMPLE_3D = "g (float[n, c, d, h, w] x, float[n, o, p, q, 3] g0) => (float[n, c, o, p, q] y) {{ y = GridSample<{}>(x, g0) }}"
MODES = [
    f'mode = "{mode}", padding_mode = "{padding}", align_corners = {align}'
    for mode, padding, align in (
        ("linear", "zeros", 0),
        ("linear", "reflection", 1),
        ("nearest", "border", 0),
        ("cubic", "zeros", 1),
        ("cubic", "reflection", 0),
    )
]
ROI = """g (float[n, c, h, w] x, float[r, 4] rois, int64[r] i) => (float[r, c, 3, 2] y) {{
    y = RoiAlign<output_height = 3, output_width = 2, sampling_ratio = {}, mode = "{}", spatial_scale = 0.5>(x, rois, i)
}}"""
POOL = """g (float[n, c, h, w] x) => (float[n, c, p, q] y) {
    a, i = MaxPool<kernel_shape = [2, 3], strides = [2, 3]>(x) y = MaxUnpool<kernel_shape = [2, 3], strides = [2, 3]>(a, i)
}"""
UNPOOL = """g (float[n, c, h, w] x, int64[n, c, h, w] i, int64[4] s) => (float[n, c, p, q] y) {
    y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(x, i, s)
}"""
DEFORMED = """g (float[n, 4, h, w] x, float[n, 24, p, q] o, float[n, 12, p, q] m) => (float[n, 3, p, q] y) {
    y = DeformConv<kernel_shape = [2, 3], strides = [2, 1], pads = [1, 0, 0, 1], offset_group = 2>(x, w0, o, b0, m)
}"""
AFFINE = "g (float[n, 2, 3] theta, int64[4] size) => (float[n, p, q, 2] y) {{ y = AffineGrid<align_corners = {}>(theta, size) }}"
COLUMNS = "g (float[n, k, l] x, int64[2] image, int64[2] block) => (float[n, c, p, q] y) {{ y = Col2Im<{}>(x, image, block) }}"
DFT = "g (float[n, m, k, {}] x, int64 axis) => (float[a, b, c, d] y) {{ y = DFT<inverse = {}, onesided = {}>(x, , axis) }}"
STFT = "g (float[n, t, 1] x, int64 step, float[l] window) => (float[n, f, b, 2] y) {{ y = STFT<onesided = {}>(x, step, window) }}"
sizes = st.integers(1, 9)


@pytest.mark.parametrize("attrs", MODES)
@settings(max_examples=5, deadline=None)
@given(n=st.integers(1, 3), h=sizes, w=sizes, p=sizes, threads=st.sampled_from([1, 3]))
def test_grid_sample(attrs: str, n: int, h: int, w: int, p: int, threads: int) -> None:
    feeds = {"x": random(n, 3, h, w), "g0": 0.9 * random(n, p, 4, 2)}
    check(model_of(SAMPLE.format(attrs), 20), feeds, threads, tolerance=1e-4 if "cubic" in attrs else 1e-5)


@settings(max_examples=5, deadline=None)
@given(d=sizes, h=sizes, w=sizes, p=sizes)
def test_grid_sample_of_volumes(d: int, h: int, w: int, p: int) -> None:
    check(model_of(SAMPLE_3D.format(MODES[0]), 20), {"x": random(2, 2, d, h, w), "g0": 0.9 * random(2, 2, p, 3, 3)}, 1)


def test_grids_that_do_not_fit() -> None:
    module = compiled(model_of("g (float[n, 2, h, w] x, float[m, p, q, 2] g0) => (float[n, c, p, q] y) { y = GridSample(x, g0) }", 20), 1)
    with pytest.raises(UserError, match="there are 2 grids for 3 images"):
        module.run({"x": random(3, 2, 4, 4), "g0": random(2, 5, 5, 2)})
    with pytest.raises(UserError, match="a spatial axis of its input has 0 elements"):
        module.run({"x": random(2, 2, 0, 4), "g0": random(2, 5, 5, 2)})


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
@settings(max_examples=5, deadline=None)
@given(n=st.integers(1, 3), h=sizes, w=sizes, r=st.integers(0, 5), opset=st.sampled_from([10, 16]))
def test_roi_align(ratio: int, mode: str, n: int, h: int, w: int, r: int, opset: int) -> None:
    rois = np.sort(np.abs(random(r, 2, 2)) * 9, axis=1).reshape(r, 4)
    check(model_of(ROI.format(ratio, mode), opset), {"x": random(n, 2, h, w), "rois": rois, "i": np.arange(r) % n}, 1)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_whose_ends_are_swapped(mode: str) -> None:
    """ONNX Runtime ends with an error, so that the standard's reference is asked."""
    rois = np.float32([[3.7, 4.1, 0.5, 1.2], [0.5, 4.1, 3.7, 1.2], [3.7, 1.2, 0.5, 4.1], [1, 1, 1, 1], [0.5, 1.2, 3.7, 6.1]])
    model, feeds = model_of(ROI.format(0, mode), 16), {"x": random(2, 2, 6, 5), "rois": 2 * rois, "i": np.array([1, 0, 1, 0, 0])}
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(compiled(model, 1).run(feeds)["y"], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_that_are_none(mode: str) -> None:
    """Each takes as many points as it needs itself, and reads nothing more: what lies beside is not a number."""
    x = np.full((1, 1, 8, 8), np.nan, np.float32)
    x[:, :, 2:5, 2:5] = 3
    rois = np.float32([[5, 5, 9, 9], [np.nan, 0, 4, 4], [0, 0, np.inf, 4], [9, 9, 5, 5], [0, 0, 60, 2]])
    y = compiled(model_of(ROI.format(0, mode), 16), 1).run({"x": x, "rois": rois, "i": np.zeros(5, np.int64)})["y"]
    if mode == "avg":
        np.testing.assert_allclose(y[0], 3, rtol=1e-6)
    assert np.isfinite(y[0]).all()
    np.testing.assert_array_equal(y[3], 0)


def test_an_image_that_is_not_there() -> None:
    module = compiled(model_of(ROI.format(2, "avg"), 16), 1)
    with pytest.raises(UserError, match="index 2 is out of range for axis 0 of size 2"):
        module.run({"x": random(2, 2, 5, 5), "rois": np.abs(random(3, 4)), "i": np.array([0, 2, 1])})


@settings(max_examples=6, deadline=None)
@given(n=st.integers(1, 3), h=st.integers(2, 9), w=st.integers(3, 9))
def test_deform_conv(n: int, h: int, w: int) -> None:
    """As at sizes known when it is compiled, which the operator's samples compare with the reference."""
    model = model_of(DEFORMED, 19, w0=wave(3, 4, 2, 3), b0=wave(3))
    rows, columns = (h + 1 - 2) // 2 + 1, w + 1 - 3 + 1
    feeds = {"x": random(n, 4, h, w), "o": 2 * random(n, 24, rows, columns), "m": random(n, 12, rows, columns)}
    y = compiled(model, 3).run(feeds)["y"]
    fixed = ts.compile(model, threads=1, cache=False, input_shapes={name: array.shape for name, array in feeds.items()}).run(feeds)["y"]
    np.testing.assert_allclose(y, fixed, rtol=0, atol=1e-5 * max(1, float(np.abs(fixed).max())))
    with pytest.raises(UserError, match="its offsets have 2 elements along axis 3"):
        compiled(model, 3).run({**feeds, "x": random(n, 4, h, 9), "o": feeds["o"][..., :1].repeat(2, -1), "m": feeds["m"][..., :1].repeat(2, -1)})


@pytest.mark.parametrize("align", [0, 1])
@settings(max_examples=6, deadline=None)
@given(n=st.integers(1, 3), p=sizes, q=sizes)
def test_affine_grid(align: int, n: int, p: int, q: int) -> None:
    p, q = p + align, q + align  # ONNX Runtime divides by the length less one
    check(model_of(AFFINE.format(align), 20), {"theta": random(n, 2, 3), "size": np.array([n, 3, p, q])}, 1)


@settings(max_examples=6, deadline=None)
@given(n=st.integers(1, 3), h=st.integers(2, 9), w=st.integers(3, 12), threads=st.sampled_from([1, 3]))
def test_max_unpool(n: int, h: int, w: int, threads: int) -> None:
    h, w = h - h % 2, w - w % 3
    check(model_of(POOL, 16), {"x": random(n, 2, h, w)}, threads)


def test_max_unpool_to_a_shape_of_run_time() -> None:
    x = random(1, 1, 2, 3)
    given = {"x": x, "i": np.array([0, 3, 5, 12, 14, 23]).reshape(x.shape)}
    module = compiled(model_of(UNPOOL, 16), 1)
    wanted = np.zeros(24, np.float32)
    wanted[given["i"].reshape(-1)] = x.reshape(-1)
    for rows, columns in ((4, 6), (5, 7), (6, 6)):
        y = module.run({**given, "s": np.array([1, 1, rows, columns])})["y"]
        np.testing.assert_array_equal(y, np.pad(wanted.reshape(1, 1, 4, 6), ((0, 0), (0, 0), (0, rows - 4), (0, columns - 6))))
    with pytest.raises(UserError, match="index 24 is out of range for axis 0 of size 24"):
        module.run({"x": x, "i": np.full(x.shape, 24), "s": np.array([1, 1, 4, 6])})
    with pytest.raises(UserError, match="a dim of the output shape is -4"):
        module.run({**given, "s": np.array([1, 1, -4, 6])})


@pytest.mark.parametrize("attrs", ["strides = [1, 1]", "strides = [2, 1], pads = [1, 0, 2, 1]", "dilations = [1, 2], pads = [0, 1, 1, 1]"])
@settings(max_examples=5, deadline=None)
@given(n=st.integers(1, 3), c=st.integers(1, 3), image=st.tuples(st.integers(4, 8), st.integers(4, 8)), block=st.tuples(*[st.integers(1, 3)] * 2))
def test_col2im(attrs: str, n: int, c: int, image: tuple[int, int], block: tuple[int, int]) -> None:
    pads = [1, 0, 2, 1] if "stri" in attrs and "pads" in attrs else [0, 1, 1, 1] if "pads" in attrs else [0] * 4
    strides, dilations = (2, 1) if "[2, 1]" in attrs else (1, 1), (1, 2) if "dil" in attrs else (1, 1)
    windows = [(image[a] + pads[a] + pads[2 + a] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1 for a in range(2)]
    x = random(n, c * block[0] * block[1], windows[0] * windows[1])
    model = model_of(COLUMNS.format(attrs), 18)
    feeds = {"x": x, "image": np.array(image), "block": np.array(block)}
    check(model, feeds, 1)
    with pytest.raises(UserError, match="columns, where the image has"):
        compiled(model, 1).run({**feeds, "x": np.concatenate([x, x], axis=2)})


@pytest.mark.parametrize(("parts", "inverse", "onesided"), [(1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 0)])
@settings(max_examples=6, deadline=None)
@given(n=sizes, m=sizes, k=sizes, axis=st.integers(-4, 2).filter(lambda axis: axis != -1))
def test_dft_along_an_axis_of_run_time(parts: int, inverse: int, onesided: int, n: int, m: int, k: int, axis: int) -> None:
    model = model_of(DFT.format(parts, inverse, onesided), 20)
    x = random(n, m, k, parts)
    z = x[..., 0] if parts == 1 else x[..., 0] + 1j * x[..., 1]
    along = axis if axis >= 0 else axis + 4
    wanted = (np.fft.ifft if inverse else np.fft.rfft if onesided else np.fft.fft)(z, axis=along)
    y = compiled(model, 1).run({"x": x, "axis": np.array(axis)})["y"]
    np.testing.assert_allclose(y, np.stack([wanted.real, wanted.imag], axis=-1), rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("axis", [3, -1, 4, -5])
def test_axes_that_cannot_be_transformed(axis: int) -> None:
    with pytest.raises(UserError, match=r"holds real and imaginary parts|does not exist"):
        compiled(model_of(DFT.format(1, 0, 0), 20), 1).run({"x": random(2, 3, 4, 1), "axis": np.array(axis)})


@settings(max_examples=6, deadline=None)
@given(length=st.integers(1, 12), bins=st.integers(2, 9))
def test_real_signals_from_half_of_their_spectrum(length: int, bins: int) -> None:
    """By the definition; a length given at run time cuts the spectrum, or pads it with zeros."""
    text = "g (float[n, m, 2] x, int64 length) => (float[n, l, 1] y) { y = DFT<inverse = 1, onesided = 1>(x, length, axis) }"
    x = random(3, bins, 2)
    y = compiled(model_of(text, 20, axis=np.array(1)), 1).run({"x": x, "length": np.array(length)})["y"]
    wanted = np.fft.irfft(x[..., 0] + 1j * x[..., 1], length, axis=1)[..., None]
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * max(1, float(np.abs(wanted).max())))


@pytest.mark.parametrize("onesided", [0, 1])
@settings(max_examples=6, deadline=None)
@given(t=st.integers(8, 40), step=st.integers(1, 9), length=st.integers(1, 8))
def test_stft(onesided: int, t: int, step: int, length: int) -> None:
    model = model_of(STFT.format(onesided), 17)
    feeds = {"x": random(2, t, 1), "step": np.array(step), "window": np.abs(wave(length)) + np.float32(0.1)}
    frames = np.stack([feeds["x"][:, at : at + length, 0] for at in range(0, t - length + 1, step)], axis=1) * feeds["window"]
    wanted = (np.fft.rfft if onesided else np.fft.fft)(frames, axis=2)
    y = compiled(model, 1).run(feeds)["y"]
    np.testing.assert_allclose(y, np.stack([wanted.real, wanted.imag], axis=-1), rtol=0, atol=1e-5 * max(1, float(np.abs(wanted).max())))
    with pytest.raises(UserError, match="frames are 0 elements apart"):
        compiled(model, 1).run({**feeds, "step": np.array(0)})
    with pytest.raises(UserError, match="elements in a signal of"):
        compiled(model, 1).run({**feeds, "x": feeds["x"][:, : length - 1]})
