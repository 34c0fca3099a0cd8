"""Sequences and optional values between a run and its caller: lists of arrays, and None for what is absent, as the tensors that stand for them.

An optional value is a bool, whether it is there, and its content. A sequence is the elements' elements one after another; their shapes,
a row of dims for each; and, where ranks may differ, the ranks, rows then having ones behind the dims of their element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compiler.errors import UserError
from runtime.artifact import TensorInfo

Array = np.ndarray[Any, np.dtype[Any]]
ANY_SHAPE = ("...",)
"""The shape of a sequence whose elements may have any."""

AsArray = Callable[[str, Any, np.dtype[Any]], Array]
"""Makes an array of a value, given what to call it in an error and the dtype that is wanted."""


def packed(info: TensorInfo, dtype: np.dtype[Any], value: Any, dims: Mapping[str, int], as_array: AsArray, where: str) -> list[Any]:
    """What is given for an input of elements of dtype, as the tensors that stand for it; ``dims`` are what symbolic dims are known to be.

    Raises UserError for what is no list, and for elements that do not fit. (The tensor in an optional value is checked as others are.)
    """
    present = [np.array(value is not None)] if info.is_optional else []
    if not info.is_sequence:
        shape = [dim if isinstance(dim, int) else dims.get(dim, 0) for dim in info.shape]
        return [*present, np.full(shape, "" if dtype.kind == "O" else 0, dtype) if value is None else value]
    if not isinstance(value, list | tuple | None):
        what = f"input {info.name} is a {type(value).__name__}; the model takes {info.dtype}"
        raise UserError(what, where=where, hint="pass a list of numpy arrays")
    elements = [as_array(f"{info.name}, element {number},", element, dtype) for number, element in enumerate(value or ())]
    for number, element in enumerate(elements):
        _check(number, element, info, dtype, where)
    return [*present, *_joined(elements, dtype, mixed=info.shape == ANY_SHAPE, rank=len(info.shape))]


def _check(number: int, element: Array, info: TensorInfo, dtype: np.dtype[Any], where: str) -> None:
    """Raises UserError for an element of another type or shape than the model takes."""
    if element.dtype != dtype:
        what = f"input {info.name}, element {number}, is {element.dtype}; the model takes {dtype}"
        raise UserError(what, where=where, hint=f"convert it: array.astype('{dtype}')")
    fits = len(element.shape) == len(info.shape) and all(want in ("?", have) for want, have in zip(info.shape, element.shape, strict=True))
    if info.shape != ANY_SHAPE and not fits:
        what = f"input {info.name}, element {number}, has shape {list(element.shape)}; the model takes [{', '.join(map(str, info.shape))}]"
        raise UserError(what, where=where, hint="reshape the element")


def _joined(elements: Sequence[Array], dtype: np.dtype[Any], rank: int, *, mixed: bool) -> list[Array]:
    ranks = [element.ndim for element in elements]
    width = max(ranks, default=0) if mixed else rank
    shapes = np.ones((len(elements), width), np.int64)
    for row, element in zip(shapes, elements, strict=True):
        row[: element.ndim] = element.shape
    data = np.concatenate([np.zeros(0, dtype), *(element.reshape(-1) for element in elements)])
    return [data, shapes, *([np.array(ranks, np.int64)] if mixed else [])]


def unpacked(info: TensorInfo, tensors: Sequence[Array]) -> Any:
    """The array, the list of arrays (views of one), or the None that tensors stand for."""
    if info.is_optional:
        present, *tensors = tensors
        if not present.item():
            return None
    if not info.is_sequence:
        return tensors[0]
    data, shapes = tensors[:2]
    ranks = tensors[2].tolist() if len(tensors) > 2 else [shapes.shape[1]] * len(shapes)
    ends = np.cumsum(shapes.prod(axis=1)).tolist()
    begins = [0, *ends[:-1]]
    return [data[begin:end].reshape(row[:rank]) for begin, end, row, rank in zip(begins, ends, shapes.tolist(), ranks, strict=False)]
