"""Mean and variance for kernels that normalise: what is subtracted from each element, and what it is multiplied with.

The variance is that of deviations from a rounded mean, of which what is left of the mean is taken out again, so that neither a large mean nor
many elements cost accuracy (T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, 1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, floordiv, product
from compiler.ir.loop import Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.types import DType
from compiler.kernels.base import Workload
from compiler.kernels.folds import Fold, accumulator_dtype
from compiler.kernels.loops import number


@dataclass(frozen=True)
class Center:
    """The mean in two parts: ``mean``, as elements have it, and the ``rest`` of it where that is known already."""

    mean: Reg
    rest: Reg | None

    def spread(self, b: LoopBuilder, lanes: int) -> Center:
        """The same in every lane."""
        return Center(b.splat(self.mean, lanes), self.rest and b.splat(self.rest, lanes))


@dataclass(frozen=True)
class Factors:
    """The result is ``(x - mean) * scale + shift``; mean and shift are None where nothing is subtracted."""

    mean: Reg | None
    scale: Reg
    shift: Reg | None

    def spread(self, b: LoopBuilder, lanes: int) -> Factors:
        """The same in every lane."""
        return Factors(self.mean and b.splat(self.mean, lanes), b.splat(self.scale, lanes), self.shift and b.splat(self.shift, lanes))


def element_dtypes(workload: Workload) -> tuple[DType, DType]:
    """The types in which elements are stored and computed with."""
    dtype = workload.inputs[0].type.dtype
    return dtype, DType.FLOAT64 if dtype is DType.FLOAT64 else DType.FLOAT32


def is_short_sum(workload: Workload, chain: Dim) -> bool:
    """Whether so many additions in a row need no wider type than elements have."""
    _, dtype = element_dtypes(workload)
    return accumulator_dtype("sum", dtype, chain) is dtype


def row_elements(workload: Workload) -> Dim:
    """Elements that share a mean and variance."""
    return floordiv(product([workload.inputs[0].type.shape[axis] for axis in workload.ints("axes")]), workload.int("groups"))


class Squares(Fold):
    """Sums of the squares of deviations; where ``linear``, of the deviations, too, in turn with those."""

    def __init__(self, b: LoopBuilder, dtype: DType, *, linear: bool) -> None:
        super().__init__(b, "sum", dtype)
        self.width = 2 if linear else 1
        """Sums of each deviation."""

    def accumulate(self, accumulators: Sequence[Reg], elements: Sequence[Reg]) -> list[Reg]:
        """A square is added as it is multiplied: additions are what this is bound by."""
        found = list[Reg]()
        for k, total in enumerate(accumulators):
            element, linear = elements[k // self.width], k % self.width
            found.append(self._b.op("add", total, element) if linear else self._b.fma(element, element, total))
        return found


class Moments:
    """The arithmetic, on scalars or vectors: ``sum`` and ``squares`` make ``chain`` additions in a row, elements and results have ``dtype``."""

    def __init__(self, b: LoopBuilder, workload: Workload, chain: Dim) -> None:
        epsilon = workload.attrs["epsilon"]
        if not isinstance(epsilon, float | int):
            raise InternalError(f"epsilon is {epsilon!r}, not a number", where="kernel family normalize")
        self._b = b
        self._epsilon = epsilon
        self._count = row_elements(workload)
        self.centers = bool(workload.attrs["center"])
        _, self.dtype = element_dtypes(workload)
        dtype = accumulator_dtype("sum", self.dtype, chain)
        self.finds_rest = self.centers and dtype is self.dtype
        """Whether the rest of the mean comes from deviations, as sums are no wider than elements."""
        self.sum, self.squares = Fold(b, "sum", dtype), Squares(b, dtype, linear=self.finds_rest)

    def center(self, total: Reg) -> Center:
        """From the sum of the elements."""
        mean = self._over_count(total)
        rounded = self._b.cast(mean, self.dtype)
        if self.finds_rest:
            return Center(rounded, None)
        return Center(rounded, self._b.cast(self._b.op("sub", mean, self._b.cast(rounded, mean.type.dtype)), self.dtype))

    def deviation(self, x: Reg, center: Center | None) -> Reg:
        """An element without the mean, as it is added up."""
        if center is not None:
            x = self._b.op("sub", x, center.mean)
            x = x if center.rest is None else self._b.op("sub", x, center.rest)
        return self._b.cast(x, self.sum.dtype)

    def factors(self, totals: Sequence[Reg], center: Center | None) -> Factors:
        """From the sums ``squares`` gives."""
        b = self._b
        variance, *rest = (self._over_count(total) for total in totals)
        left = None if center is None else center.rest
        for wide in rest:
            variance = b.op("max", b.op("sub", variance, b.op("mul", wide, wide)), b.const(0, wide.type))
            left = b.cast(wide, self.dtype)
        root = b.op("sqrt", b.op("add", variance, b.const(self._epsilon, variance.type)))
        scale = b.cast(b.op("div", b.const(1, root.type), root), self.dtype)
        shift = None if left is None else b.op("neg", b.op("mul", left, scale))
        return Factors(None if center is None else center.mean, scale, shift)

    def apply(self, x: Reg, factors: Factors) -> Reg:
        """The result for an element."""
        if factors.mean is None or factors.shift is None:
            return self._b.op("mul", x, factors.scale)
        return self._b.fma(self._b.op("sub", x, factors.mean), factors.scale, factors.shift)

    def _over_count(self, total: Reg) -> Reg:
        return self._b.op("div", total, self._b.splat(number(self._b, self._count, self.sum.dtype), total.type.lanes))
