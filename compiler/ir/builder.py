"""GraphBuilder: emits typed nodes one by one and folds shape arithmetic while it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from math import prod

import numpy as np

from compiler.errors import BY_ZERO, UnsupportedForm
from compiler.ir.broadcast import Meeting, meetings
from compiler.ir.control import attr_symbols
from compiler.ir.graph import Array, Attr, Constant, Graph, Node, Value
from compiler.ir.intexpr import Dim, IntExpr, sym
from compiler.ir.op import lookup
from compiler.ir.run_time import depends_on_run, is_equal, is_natural, lower_bound
from compiler.ir.types import ADDRESSABLE_BYTES, DType, TensorType

_FOLD_LIMIT = 1 << 16
"""Elements up to which results are folded while building: enough for shape computation and for per-channel parameters."""


_SHORT = 24
"""Characters up to which an expression is not worth a name."""

NO_STRINGS = "strings are not supported in this place"

_UNSIGNED = (DType.BOOL, DType.UINT8, DType.UINT16, DType.UINT32, DType.UINT64)

_SYMBOLIC_LIMIT = 256
"""Elements up to which symbolic results are folded."""


class GraphBuilder:
    """Collects nodes for one graph. Names are made unique; integer tensors whose content follows from shapes are known as dims.

    ``folding`` evaluates small nodes over known operands at once, and emits the checks that types of symbolic dims need; switch it off to
    keep a graph as it is written. ``around`` is the builder of the graph that this one is a region in.
    """

    def __init__(self, name: str, *, folding: bool = True, around: GraphBuilder | None = None) -> None:
        self.name = name
        self._numbers: Iterator[int] = count(1) if around is None else around._numbers  # symbols are unique in all regions
        self._checked: set[tuple[Dim | None, Dim, Dim | None]] = set() if around is None else set(around._checked)
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.node_limit: int | None = None
        self.constants: dict[Value, Constant] = {}
        self._folding = folding
        self._dims: dict[Value, Array] = {}
        self._names: set[str] = set()
        self._taken: dict[str, int] = {}
        self._producers: dict[Value, Node] = {}
        self._defined: dict[Dim, Dim] = {}
        self._naturals: dict[Dim, Dim] = {}
        self._sizes: set[Dim] = set() if around is None else set(around._sizes)

    def unique(self, stem: str) -> str:
        """A name no value of this graph has yet, from stem."""
        clean = "".join(c if c.isalnum() or c in "_./-:" else "_" for c in stem) or "v"
        name, number = clean, self._taken.get(clean, 1)
        while name in self._names:
            name, number = f"{clean}.{number}", number + 1
        self._names.add(name)
        self._taken[clean] = number
        return name

    def input(self, name: str, type_: TensorType) -> Value:
        """A new graph input."""
        value = Value(self.unique(name), type_)
        self.inputs.append(value)
        return value

    def constant(self, array: Array, name: str = "const") -> Value:
        """A constant by reference to its array."""
        dtype = DType.of(array.dtype)
        if dtype is DType.STRING and not all(isinstance(item, str) for item in array.reshape(-1)):
            raise UnsupportedForm(NO_STRINGS)
        value = Value(self.unique(name), TensorType(dtype, tuple(array.shape)))
        self.constants[value] = Constant(array)
        return value

    def adopt(self, value: Value, constant: Constant | None = None) -> Value:
        """Take a value of another graph as it is: an input, or a constant when its data is given."""
        self._names.add(value.name)
        if constant is not None:
            self.constants[value] = constant
        return value

    def append(self, node: Node) -> None:
        """Take a finished node as it is."""
        self._names.update(v.name for v in node.outputs)
        self._add(node)

    def emit(self, op: str, *inputs: Value | None, name: str = "", **attrs: Attr) -> Value:
        """A node with one output; the output."""
        (value,) = self.emit_multi(op, inputs, attrs, name=name)
        return value

    def emit_multi(self, op: str, inputs: Sequence[Value | None], attrs: dict[str, Attr], *, name: str = "") -> tuple[Value, ...]:
        """A node with its inferred outputs; folded where it is small and its operands, or the integers it computes, are known."""
        definition = lookup(op)
        if self._folding and definition.broadcasts is not None:
            inputs = self._stretched(inputs, definition.broadcasts, name or op)
        given = [None if v is None else v.type for v in inputs]
        types = definition.infer(given, attrs)
        if not definition.takes_strings and any(t is not None and t.dtype is DType.STRING for t in (*given, *types)):
            raise UnsupportedForm(NO_STRINGS)
        for type_ in types:
            _check_size(type_)
        if self._folding:
            for left, right in definition.assumes([None if v is None else v.type for v in inputs], attrs):
                self.equal(left, right, name or op)
        folded = self._fold(op, inputs, attrs, types, name or op) if self._folding else None
        if folded is not None:
            return (folded,)
        outputs = tuple(Value(self.unique(name or op), t) for t in types)
        self._add(Node(op, tuple(inputs), outputs, attrs, name=name))
        return outputs

    def _stretched(self, inputs: Sequence[Value | None], kept: int, name: str) -> Sequence[Value | None]:
        """Operands whose dims fit whatever a run finds: where two unknown ones meet, both are broadcast to what comes of them."""
        present = [v.type.shape[: max(0, v.type.rank - kept)] for v in inputs if v is not None]
        for meeting in meetings(present):
            extent = self.meet(meeting, f"node {name!r}")
            inputs = [v if v is None else self._stretch(v, meeting, v.type.rank - kept - meeting.axis, extent) for v in inputs]
        return inputs

    def meet(self, meeting: Meeting, place: str) -> Dim:
        """The dim of the result, once it is checked that the two that meet fit, for the node that ``place`` names."""
        self.check(0, meeting.zero, 0, f"dims {meeting.left} and {meeting.right} that meet in it must be equal, or one of them 1", place)
        if isinstance(meeting.extent, int):
            return meeting.extent
        return self._symbol_of(meeting.extent)

    def _stretch(self, value: Value, meeting: Meeting, axis: int, extent: Dim) -> Value:
        shape = value.type.shape
        if axis < 0 or shape[axis] not in (meeting.left, meeting.right) or shape[axis] == extent:
            return value
        return self.emit("expand", value, shape=(*shape[:axis], extent, *shape[axis + 1 :]))

    def symbol(self, *, natural: bool) -> str:
        """A new symbol; ``natural`` for what is never negative."""
        return f"{'n' if natural else 'u'}{next(self._numbers)}"

    def bind(self, value: Value, *, natural: bool = False) -> tuple[Dim, ...]:
        """Symbols for the elements of an integer value of rank 0 or 1 and static length; ``natural`` where none can be negative."""
        known = self.dims(value)
        if known is not None:
            return known
        symbols = tuple(self.symbol(natural=natural or value.type.dtype in _UNSIGNED) for _ in range(prod(value.type.static_shape)))
        self.emit_multi("bind", (value,), {"symbols": symbols})
        content = np.empty(len(symbols), object)
        content[:] = [sym(name) for name in symbols]
        self.set_dims(value, content.reshape(value.type.static_shape))
        return tuple(content.tolist())

    def define(self, value: Dim) -> Dim:
        """A symbol for a size that a run derives; value itself where it is short, or known from the inputs' shapes."""
        if not depends_on_run(value) or len(str(value)) <= _SHORT:
            return value
        if value not in self._defined:
            symbol = self.symbol(natural=is_natural(value))
            self.emit_multi("define", (), {"symbol": symbol, "value": value})
            self._defined[value] = sym(symbol)
        return self._defined[value]

    def is_size(self, value: Dim) -> bool:
        """Whether value is known not to be negative: its terms say so, or it is a dim of a value, of which a run has checked what it must."""
        return value in self._sizes or is_natural(value)

    def natural(self, value: Dim) -> Dim:
        """A symbol for a size that a run derives, and that is known not to be negative; value itself where its terms say so."""
        return value if is_natural(value) else self._symbol_of(value)

    def _symbol_of(self, value: Dim) -> Dim:
        """The symbol defined as value, which is not negative."""
        if value not in self._naturals:
            symbol = self.symbol(natural=True)
            self.emit_multi("define", (), {"symbol": symbol, "value": value})
            self._naturals[value] = sym(symbol)
        return self._naturals[value]

    def check(self, low: Dim | None, value: Dim, high: Dim | None, message: str, place: str) -> None:
        """A condition ``low <= value <= high`` that every run verifies, for the node that ``place`` names.

        Raises UnsupportedForm where it is known not to hold.
        """
        above = 0 if low is None else value - low
        below = 0 if high is None else high - value
        if any(isinstance(d, int) and d < 0 for d in (above, below)):
            raise UnsupportedForm(message.format(low=low, value=value, high=high))
        key = (low, value, high)
        if (is_natural(above, 0) and is_natural(below, 0)) or key in self._checked:
            return
        self._checked.add(key)
        escaped = place.replace("{", "{{").replace("}", "}}")
        self.emit_multi("check", (), {"low": low, "value": value, "high": high, "message": f"{escaped}: {message}"})

    def equal(self, left: Dim, right: Dim, name: str) -> None:
        """A check that two dims are the same."""
        message = f"dims {left} and {right} of its operands must be equal and are {{value}} and {{low}}"
        self.check(right, left, right, message, f"node {name!r}")

    def producer(self, value: Value) -> Node | None:
        """The node of this graph that makes value; None for inputs, constants and values of other graphs."""
        return self._producers.get(value)

    def array(self, value: Value) -> Array | None:
        """The data of a value that is constant; None otherwise."""
        constant = self.constants.get(value)
        return None if constant is None else constant.array

    def dims(self, value: Value) -> tuple[Dim, ...] | None:
        """The integers in a value of rank 0 or 1, symbolic ones included; None when they are not known."""
        known = self.content(value)
        if known is None or known.ndim > 1 or known.dtype.kind not in "iuO":
            return None
        return tuple(d if isinstance(d, IntExpr) else int(d) for d in known.reshape(-1).tolist())

    def set_dims(self, value: Value, content: Array) -> None:
        """Record what an integer value is known to hold (an object array of dims)."""
        self._dims[value] = content

    def graph(self, outputs: Sequence[Value]) -> Graph:
        """The finished graph."""
        return Graph(self.name, tuple(self.inputs), tuple(outputs), tuple(self.nodes), dict(self.constants))

    def content(self, value: Value) -> Array | None:
        """What is known of a value's numbers: its data where it is constant, or an object array of dims; None where it is computed."""
        return None if value.type.dtype is DType.STRING else self._dims.get(value, self.array(value))

    def _add(self, node: Node) -> None:
        if len(self.nodes) == self.node_limit:
            raise UnsupportedForm("it would become thousands of nodes: one of its attributes or constants is beyond what is supported")
        self.nodes.append(node)
        self._producers.update(dict.fromkeys(node.outputs, node))
        self._sizes.update(dim for value in node.outputs for dim in value.type.shape)

    def _fold(self, op: str, inputs: Sequence[Value | None], attrs: dict[str, Attr], types: tuple[TensorType, ...], name: str) -> Value | None:
        if len(types) != 1:
            return None
        elements = types[0].elements
        if not isinstance(elements, int) or elements > _FOLD_LIMIT:
            return None
        arrays = [None if v is None else self.array(v) for v in inputs]
        fixed = not any(True for attr in attrs.values() for _ in attr_symbols(attr))
        if inputs and fixed and all(a is not None or v is None for a, v in zip(arrays, inputs, strict=True)):
            try:
                (result,) = lookup(op).evaluate(arrays, attrs)
            except ZeroDivisionError:  # a run that comes here reports it
                return None
            return self.constant(result, name=op)
        if types[0].dtype not in (DType.INT64, DType.INT32, DType.BOOL):
            return None
        known = [None if v is None else self.content(v) for v in inputs]
        content = lookup(op).known_content([None if v is None else v.type for v in inputs], known, attrs)
        if content is None:
            return None
        for divisor in lookup(op).divisors(known):
            if (lower_bound(divisor, 0) or 0) < 1:
                self.check(0, is_equal(divisor, 0), 0, BY_ZERO, f"node {name!r}")
        content = content.reshape(types[0].static_shape)
        if not any(isinstance(d, IntExpr) for d in content.reshape(-1)):
            return self.constant(content.astype(types[0].dtype.numpy), name=op)
        return self._symbolic(content, types[0]) if content.size <= _SYMBOLIC_LIMIT else None

    def _symbolic(self, content: Array, type_: TensorType) -> Value | None:
        """A value of integers some of which are symbolic."""
        if type_.dtype is DType.BOOL:
            return None
        source = self._dims_node(tuple(content.reshape(-1).tolist()), scalar=type_.rank == 0)
        if type_.rank > 1:
            source = self._node("reshape", (source,), TensorType(DType.INT64, type_.shape), shape=type_.shape)
        value = source if type_.dtype is DType.INT64 else self._node("cast", (source,), type_, to=type_.dtype)
        self.set_dims(value, content)
        return value

    def _dims_node(self, values: tuple[Dim, ...], *, scalar: bool) -> Value:
        return self._node("dims", (), TensorType(DType.INT64, () if scalar else (len(values),)), values=values, scalar=scalar)

    def _node(self, op: str, inputs: tuple[Value, ...], type_: TensorType, **attrs: Attr) -> Value:
        value = Value(self.unique(op), type_)
        self._add(Node(op, inputs, (value,), attrs))
        return value


def _check_size(type_: TensorType) -> None:
    """Raises UnsupportedForm for a result that no memory can hold."""
    if any(isinstance(dim, int) and dim < 0 for dim in type_.shape):
        raise UnsupportedForm(f"a result would have the shape {type_}")
    if isinstance(type_.nbytes, int) and type_.nbytes > ADDRESSABLE_BYTES:
        raise UnsupportedForm(f"a result would be {type_}, of {type_.nbytes:.3g} bytes")
