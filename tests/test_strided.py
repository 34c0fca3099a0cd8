"""Views with strides: what transposes, slices and reshapes make of a memory, against numpy."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.interp import interpret_all
from compiler.ir.intexpr import sym
from compiler.ir.strided import Strided, chain, through
from tests.graph_cases import f32


def moved(b: GraphBuilder, x: Value, draw: Any, steps: int) -> Value:
    """x transposed, cut, reshaped, broadcast and mirrored."""
    for _ in range(steps):
        shape = x.type.static_shape
        match draw(st.sampled_from(("transpose", "slice", "split", "join", "expand", "pad"))):
            case "transpose":
                x = b.emit("transpose", x, perm=tuple(draw(st.permutations(range(len(shape))))))
            case "slice":
                spans = [sorted(draw(st.tuples(st.integers(0, dim - 1), st.integers(0, dim - 1)))) for dim in shape]
                steps_ = tuple(draw(st.sampled_from((1, 1, 2))) for _ in shape)
                sizes = tuple((end - start) // step + 1 for (start, end), step in zip(spans, steps_, strict=True))
                x = b.emit("slice", x, starts=tuple(start for start, _ in spans), sizes=sizes, steps=steps_)
            case "split" if len(shape) < 5:
                axis = draw(st.integers(0, len(shape) - 1))
                part = draw(st.sampled_from([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]))
                x = b.emit("reshape", x, shape=(*shape[:axis], part, shape[axis] // part, *shape[axis + 1 :]))
            case "join" if len(shape) > 2:
                axis = draw(st.integers(0, len(shape) - 2))
                x = b.emit("reshape", x, shape=(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))
            case "expand":
                x = b.emit("expand", x, shape=tuple(3 if dim == 1 and draw(st.booleans()) else dim for dim in shape))
            case "pad":
                x = b.emit("pad", x, begins=(0,) * len(shape), ends=(0,) * len(shape), mode="reflect", value=0.0)
    return x


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_view_is_what_the_nodes_make(data: Any) -> None:
    b = GraphBuilder("g", folding=False)
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    x = b.input("x", f32(*shape))
    result = moved(b, x, data.draw, data.draw(st.integers(1, 4)))
    graph = b.graph([result])
    nodes = chain(result, graph.producers)
    view = through(nodes) if nodes else Strided.row_major(shape)
    array = np.arange(prod(shape), dtype=np.float32)
    want = interpret_all(graph, {"x": array.reshape(shape)})[result.name]
    if view is None:
        return
    assert view.elements == array.size
    places = np.full(view.shape, view.offset)
    for axis, stride in enumerate(view.strides):
        places = places + np.arange(view.shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(view.shape))]) * stride
    np.testing.assert_array_equal(array[places], want)


def test_what_is_no_view_is_none() -> None:
    whole = Strided.row_major((4, 6))
    turned = Strided((6, 4), (1, 6), 0, 24)
    assert turned.reshaped((24,)) is None
    assert turned.reshaped((2, 3, 4)) == Strided((2, 3, 4), (3, 1, 6), 0, 24)
    assert whole.reshaped((24,)) == Strided.row_major((24,))
    assert Strided.row_major((sym("n"), 6)).reshaped((sym("n"), 2, 3)) == Strided.row_major((sym("n"), 2, 3))
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(4, 6))
    for value in (
        b.emit("pad", x, begins=(0, 1), ends=(0, 0), mode="constant", value=0.0),
        b.emit("resize_nearest", x, scales=(1, 2)),
        b.emit("relu", x),
    ):
        assert through(chain(value, b.graph([value]).producers)) is None
