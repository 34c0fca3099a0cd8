"""CenterCropPad: the middle of a tensor, or the tensor in the middle of zeros, along each axis."""

from __future__ import annotations

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim, floordiv, maximum, minimum
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ops.pad import Pad
from compiler.ops.support import normalize_axis

_X = np.arange(1, 1 + 5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)


def _center_crop_pad(context: FormContext) -> Value:
    """A slice, then a pad; what is left of an odd difference is at the end."""
    x = context.input(0)
    axes = [normalize_axis(int(axis), x.type.rank) for axis in context.attrs.get("axes", range(x.type.rank))]
    wanted = context.dims(1)
    if wanted is None:
        declared = context.declared_shape(0, "the shape", x.type.rank)
        wanted = tuple(declared[axis] for axis in axes)
    if len(wanted) != len(axes):
        raise UnsupportedForm(f"{len(wanted)} dims are wanted for {len(axes)} axes")
    starts: list[Dim] = [0] * x.type.rank
    begins, ends, sizes = list(starts), list(starts), list(x.type.shape)
    for axis, size in zip(axes, wanted, strict=True):
        dim = x.type.shape[axis]
        missing = maximum(size - dim, 0)
        starts[axis], sizes[axis] = floordiv(maximum(dim - size, 0), 2), minimum(dim, size)
        begins[axis] = floordiv(missing, 2)
        ends[axis] = missing - begins[axis]
    cropped = context.emit("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * x.type.rank)
    return context.emit("pad", cropped, begins=tuple(begins), ends=tuple(ends), mode="constant", value=0)


def _shape(*dims: int) -> np.ndarray:
    return np.array(dims, np.int64)


extend(
    Pad,
    forms=(OnnxForm("CenterCropPad", _center_crop_pad, since=18),),
    samples=(
        Sample("CenterCropPad", (_X, _shape(2, 7, 3)), constant=(1,)),
        Sample("CenterCropPad", (_X.astype(np.int64), _shape(4, 6)), {"axes": [-1, 0]}, constant=(1,)),
        Sample("CenterCropPad", (_X[:0], _shape(3)), {"axes": [0]}, constant=(1,)),
    ),
)
