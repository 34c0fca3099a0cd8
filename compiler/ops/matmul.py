"""Matrix products: MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.box import Box, Part, broadcast_part
from compiler.ir.broadcast import broadcast_assumptions, broadcast_shapes
from compiler.ir.graph import Array, Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.op import FormContext, OnnxForm, Op, Sample, register
from compiler.ir.strided import Strided
from compiler.ir.types import TensorType
from compiler.ops.binary import same_dtype
from compiler.ops.grid_sample import AFFINE_SAMPLES, affine_grid
from compiler.ops.reduce import reduce
from compiler.ops.spectral import SPECTRAL_SAMPLES, dft, stft
from compiler.ops.support import Arrays, Attrs, Types, array, first_type, given, known, reshape, scalar_like, transpose

_A = (np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 9) / 5
_B = (np.arange(20, dtype=np.float32).reshape(4, 5) - 7) / 3
_NEAR = 1 << 17
"""Elements from the first to the last row of a matrix that fits a second cache: its lines are read again for every panel of the right side."""

_C = np.array([1.0, -2.0, 3.0, 0.5, 0.0], np.float32)


@register
class MatMul(Op):
    """``a [..., M, K] @ b [..., K, N]``, leading dims broadcasting; floats accumulate in at least their own precision."""

    name = "matmul"
    families = ("matmul",)
    computes = True
    samples = (
        *SPECTRAL_SAMPLES,
        *AFFINE_SAMPLES,
        Sample("MatMul", (_A, _B)),
        Sample("MatMul", (_A, _B), constant=(1,)),
        Sample("MatMul", (_A[0, 0], _B)),
        Sample("MatMul", (_A, _B[:, 0])),
        Sample("MatMul", (_A[0, 0], _B[:, 0])),
        Sample("MatMul", (_A[:, None], np.stack([_B, _B, -_B]))),
        Sample("MatMul", (_A[:, :, :0], _B[:0])),
        Sample("MatMul", (_A[0].astype(np.int32), _B.astype(np.int32))),
        Sample("Gemm", (_A[0], _B, _C)),
        Sample("Gemm", (_A[0], _B.T, _C), {"transB": 1, "alpha": 0.5, "beta": 2.0}, constant=(1, 2)),
        Sample("Gemm", (_A[0].T, _B), {"transA": 1}),
        Sample("Gemm", (_A[0, :, :0], _B[:0], _C)),
        Sample("Gemm", (_A[0], _B, _C), {"broadcast": 1}, opset=6),
        Sample("Gemm", (_A[0], _B, np.array([[1], [2], [3]], np.float32))),
        Sample("Einsum", (_A, _B), {"equation": "bij,jk->bik"}),
        Sample("Einsum", (_A, _A), {"equation": "bij, bkj -> bik"}),
        Sample("Einsum", (_A, _A), {"equation": "...ij,...kj"}),
        Sample("Einsum", (_A,), {"equation": "bij->jb"}),
        Sample("Einsum", (_A[0, 0], _C), {"equation": "i,j->ij"}),
        Sample("Einsum", (_A, _B, _C), {"equation": "bij,jk,k->bk"}),
        Sample("Einsum", (_A[:, :, :3],), {"equation": "...ii->...i"}),
        Sample("Einsum", (_A[0, :, :3],), {"equation": "ii"}),
        Sample("Einsum", (np.arange(27, dtype=np.float32).reshape(3, 3, 3), _A[0]), {"equation": "iji,jk->ik"}),
        Sample("Einsum", (np.arange(8, dtype=np.int32).reshape(2, 2, 2),), {"equation": "iii->i"}),
    )

    broadcasts = 2

    def infer(self, inputs: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        same_dtype(inputs)
        a, b = first_type(inputs), given(inputs[1])
        if a.rank < 2 or b.rank < 2 or (a.shape[-1] != b.shape[-2] and isinstance(a.shape[-1], int) and isinstance(b.shape[-2], int)):
            raise UnsupportedForm(f"{a} and {b} cannot be multiplied: the last dim of the first must be the last but one of the second")
        return (TensorType(a.dtype, (*broadcast_shapes([a.shape[:-2], b.shape[:-2]]), a.shape[-2], b.shape[-1])),)

    def reads_strided(self, operand: int, view: Strided, inputs: Types) -> bool:
        """Rows of either side wherever they are, as long as their elements lie together; rows of the left side also side by side, where a step along
        them does not lead far."""
        if not view.shape or view.shape[-1] == 1 or view.strides[-1] == 1:
            return True
        span = view.strides[-1] * view.shape[-1]
        return operand == 0 and len(view.shape) > 1 and view.strides[-2] == 1 and isinstance(span, int) and span <= _NEAR

    def part(self, inputs: Sequence[TensorType], attrs: Attrs, box: Box) -> Part | None:
        a, b = (t.static_shape for t in inputs)
        *batch, rows, columns = box
        inner = (0, a[-1])
        return Part(((*broadcast_part(a[:-2], tuple(batch)), rows, inner), (*broadcast_part(b[:-2], tuple(batch)), inner, columns)), attrs)

    def takes_prologue(self, inputs: Types, attrs: Attrs, constant: Sequence[bool]) -> bool:
        return True

    def assumes(self, inputs: Types, attrs: Attrs) -> Sequence[tuple[Dim, Dim]]:
        a, b = first_type(inputs), given(inputs[1])
        inner = [(a.shape[-1], b.shape[-2])] if a.shape[-1] != b.shape[-2] else []
        return [*inner, *broadcast_assumptions([a.shape[:-2], b.shape[:-2]])]

    def evaluate(self, inputs: Arrays, attrs: Attrs) -> tuple[Array, ...]:
        a, b = array(inputs[0]), array(inputs[1])
        accumulator = np.int64 if a.dtype.kind in "iu" else np.float64
        with np.errstate(all="ignore"):
            return (np.matmul(a.astype(accumulator), b.astype(accumulator)).astype(a.dtype),)


def _matmul(context: FormContext) -> Value:
    a, b = context.input(0), context.input(1)
    if a.type.rank == 0 or b.type.rank == 0:
        raise UnsupportedForm("an operand is a scalar")
    left = reshape(context, a, (1, *a.type.shape)) if a.type.rank == 1 else a
    right = reshape(context, b, (*b.type.shape, 1)) if b.type.rank == 1 else b
    result = context.emit("matmul", left, right)
    shape = list(result.type.shape)
    if b.type.rank == 1:
        del shape[-1]
    if a.type.rank == 1:
        del shape[-1 if b.type.rank == 1 else -2]
    return reshape(context, result, shape)


def gemm(context: FormContext) -> Value:
    """``alpha * a @ b + beta * c``, a and b transposed on demand."""
    a, b = context.input(0), context.input(1)
    if a.type.rank != 2 or b.type.rank != 2:
        raise UnsupportedForm(f"operands of rank 2 are needed, not {a.type} and {b.type}")
    left = transpose(context, a, (1, 0)) if context.attrs.get("transA", 0) else a
    right = transpose(context, b, (1, 0)) if context.attrs.get("transB", 0) else b
    result = context.emit("matmul", left, right)
    alpha, beta = float(context.attrs.get("alpha", 1.0)), float(context.attrs.get("beta", 1.0))
    if alpha != 1:
        result = context.emit("mul", result, scalar_like(context, result, alpha))
    bias = context.optional(2)
    if bias is None or beta == 0:
        return result
    return context.emit("add", result, bias if beta == 1 else context.emit("mul", bias, scalar_like(context, bias, beta)))


class _Term:
    """An operand of an Einsum with a letter for each axis."""

    def __init__(self, value: Value, letters: str) -> None:
        if len(letters) != value.type.rank:
            raise UnsupportedForm(f"operand {letters} does not have the rank of {value.type}")
        self.value = value
        self.letters = letters

    def dim(self, letter: str) -> Dim:
        return self.value.type.shape[self.letters.index(letter)] if letter in self.letters else 1

    def ordered(self, context: FormContext, *groups: str) -> Value:
        """The operand with its axes in the order of the letters of groups, 1 where it lacks a letter."""
        order = "".join(groups)
        moved = transpose(context, self.value, [self.letters.index(c) for c in order if c in self.letters])
        return reshape(context, moved, [self.dim(c) for c in order])


def _einsum(context: FormContext) -> Value:
    """Operands are contracted from left to right, each pair as one matrix product between transposes."""
    equation = str(context.attrs["equation"]).replace(" ", "")
    terms, output = _parse_equation(equation, [context.input(i) for i in range(len(context.inputs))])
    terms = [_diagonal(context, term) for term in terms]
    total = terms[0]
    for position, term in enumerate(terms[1:], 1):
        still_needed = set(output).union(*(t.letters for t in terms[position + 1 :]))
        total = _contract(context, total, term, still_needed)
    total = _sum_out(context, total, set(output))
    return total.ordered(context, output)


def _diagonal(context: FormContext, term: _Term) -> _Term:
    """The elements whose indices are equal wherever their letters are."""
    for letter in sorted(set(term.letters)):
        while term.letters.count(letter) > 1:
            first = term.letters.index(letter)
            second = term.letters.index(letter, first + 1)
            size = known(term.value.type.shape[first], f"the dim of {letter}")
            if term.value.type.shape[second] != size:
                raise UnsupportedForm(f"letter {letter} stands for dims of {size} and {term.value.type.shape[second]} of {term.value.type}")
            others = [axis for axis in range(len(term.letters)) if axis not in (first, second)]
            moved = transpose(context, term.value, (*others, first, second))
            flat = reshape(context, moved, (*moved.type.shape[:-2], size * size))
            sizes, steps = (*flat.type.shape[:-1], size), (*(1,) * len(others), size + 1)
            value = context.emit("slice", flat, starts=(0,) * len(sizes), sizes=sizes, steps=steps)
            term = _Term(value, "".join(term.letters[axis] for axis in others) + letter)
    return term


def _sum_out(context: FormContext, term: _Term, keep: set[str]) -> _Term:
    axes = tuple(axis for axis, letter in enumerate(term.letters) if letter not in keep)
    if not axes:
        return term
    return _Term(reduce(context, term.value, "sum", axes, keepdims=False), "".join(c for c in term.letters if c in keep))


def _contract(context: FormContext, left: _Term, right: _Term, needed: set[str]) -> _Term:
    left = _sum_out(context, left, needed | set(right.letters))
    right = _sum_out(context, right, needed | set(left.letters))
    shared = [c for c in left.letters if c in right.letters]
    batch = "".join(c for c in shared if c in needed)
    inner = "".join(c for c in shared if c not in needed)
    rows = "".join(c for c in left.letters if c not in shared)
    columns = "".join(c for c in right.letters if c not in shared)
    sizes = {c: right.dim(c) if left.dim(c) == 1 else left.dim(c) for c in left.letters + right.letters}

    def flat(letters: str) -> Dim:
        return product(tuple(sizes[c] for c in letters))

    a, b = left.ordered(context, batch, rows, inner), right.ordered(context, batch, inner, columns)
    result = context.emit(
        "matmul",
        reshape(context, a, (*a.type.shape[: len(batch)], flat(rows), flat(inner))),
        reshape(context, b, (*b.type.shape[: len(batch)], flat(inner), flat(columns))),
    )
    letters = batch + rows + columns
    return _Term(reshape(context, result, [sizes[c] for c in letters]), letters)


def _parse_equation(equation: str, values: Sequence[Value]) -> tuple[list[_Term], str]:
    """The operands with their letters (capital stand-ins for an ellipsis), and the letters of the result."""
    left, arrow, output = equation.partition("->")
    texts = left.split(",")
    if len(texts) != len(values):
        raise UnsupportedForm(f"equation {equation!r} has {len(texts)} operands, the node {len(values)}")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    widest = max((v.type.rank - len(t) + 3 for t, v in zip(texts, values, strict=True) if "..." in t), default=0)
    ellipsis = "".join(spare[:widest])
    texts = [t.replace("...", ellipsis[widest - (v.type.rank - len(t) + 3) :]) for t, v in zip(texts, values, strict=True)]
    if arrow:
        output = output.replace("...", ellipsis)
    else:
        joined = "".join(texts)
        output = ellipsis + "".join(sorted(c for c in set(joined) if joined.count(c) == 1 and c not in ellipsis))
    return [_Term(v, t) for t, v in zip(texts, values, strict=True)], output


MatMul.forms = (
    OnnxForm("MatMul", _matmul),
    OnnxForm("Gemm", gemm),
    OnnxForm("Einsum", _einsum),
    OnnxForm("DFT", dft),
    OnnxForm("STFT", stft),
    OnnxForm("AffineGrid", affine_grid),
)
