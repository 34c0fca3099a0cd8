"""Ways to damage a model: of its bytes, of its tensors, nodes, attributes, values and functions, and of what lies around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import onnx
from onnx import AttributeProto, TensorProto, defs, helper

INTEGERS = (0, 1, -1, 2, 3, -2, 7, 64, -128, 1000, 10**6, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e9, -1e9, 3.4e38, float("inf"), float("-inf"), float("nan"))
NAMES = ("", "x", "y", "x0", "y0", "é\n\t", "a" * 5000, "../../x", "%s{0}", "i0", "\\", '"', "0")
LOCATIONS = ("", ".", "..", "weights", "../secret", "link", "/etc/passwd", "/dev/zero", "sub/../../secret", "fifo", "\0", "a" * 300, "é")
OPERATORS = tuple(sorted({schema.name for schema in defs.get_all_schemas()}))
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "own", "nowhere")

Mutation = Callable[[Random, onnx.ModelProto], None]
"""Changes a model in place; does nothing where the model has nothing of the kind."""


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Every node, those of functions and subgraphs included."""
    return [node for nodes in (model.graph.node, *(f.node for f in model.functions)) for node in _deep(nodes)]


def _deep(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _deep(attribute.g.node)


def tensors_of(model: onnx.ModelProto) -> list[TensorProto]:
    """The initializers, and the tensors that are attributes."""
    return [*model.graph.initializer, *(a.t for n in nodes_of(model) for a in n.attribute if a.type == AttributeProto.TENSOR)]


def _names(model: onnx.ModelProto) -> list[str]:
    return [*(v.name for v in model.graph.input), *(t.name for t in model.graph.initializer), *(o for n in model.graph.node for o in n.output)]


def number(rng: Random) -> int:
    return rng.choice(INTEGERS) if rng.random() < 0.7 else rng.randint(-12, 12)


def drop_attribute(rng: Random, model: onnx.ModelProto) -> None:
    if given := [n for n in nodes_of(model) if n.attribute]:
        node = rng.choice(given)
        del node.attribute[rng.randrange(len(node.attribute))]


def change_attribute(rng: Random, model: onnx.ModelProto) -> None:
    """Other numbers, other lengths, other texts, of the same type."""
    if not (given := [a for n in nodes_of(model) for a in n.attribute]):
        return
    attribute = rng.choice(given)
    if attribute.ints or attribute.type == AttributeProto.INTS:
        change_list(rng, attribute.ints, number)
    elif attribute.floats:
        change_list(rng, attribute.floats, lambda r: r.choice(FLOATS))
    elif attribute.type == AttributeProto.INT:
        attribute.i = number(rng)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"\xff\xfe", attribute.s[:-1], attribute.s.upper(), b"constant", b"a" * 9000))
    elif attribute.type == AttributeProto.GRAPH and attribute.g.node:
        del attribute.g.node[rng.randrange(len(attribute.g.node))]
    attribute.ref_attr_name = rng.choice(("", "", "", "slope", "nothing"))


def change_list(rng: Random, values: object, fresh: Callable[[Random], float]) -> None:
    found = list(values)  # type: ignore[call-overload]
    kind = rng.randrange(4)
    if kind == 0 and found:
        found.pop(rng.randrange(len(found)))
    elif kind == 1:
        found.insert(rng.randint(0, len(found)), fresh(rng))
    elif kind == 2 and found:
        found[rng.randrange(len(found))] = fresh(rng)
    else:
        found = [fresh(rng)] * rng.choice((0, 1, 2, len(found), 40))
    del values[:]  # type: ignore[attr-defined]
    values.extend(found)  # type: ignore[attr-defined]


def retype_attribute(rng: Random, model: onnx.ModelProto) -> None:
    if given := [n for n in nodes_of(model) if n.attribute]:
        node = rng.choice(given)
        name = rng.choice(node.attribute).name
        value = rng.choice((number(rng), 1.5, "text", [1, 2], [0.5], ["a"], helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0])))
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])


def foreign_attribute(rng: Random, model: onnx.ModelProto) -> None:
    """An attribute the operator has in some version and this node does not."""
    node = rng.choice(nodes_of(model))
    if names := [n for s in defs.get_all_schemas_with_history() if s.name == node.op_type for n in s.attributes]:
        name = rng.choice(sorted(set(names)))
        node.attribute.append(helper.make_attribute(name, rng.choice((number(rng), rng.choice(FLOATS), [number(rng), number(rng)], "text"))))


def mistype_attribute(rng: Random, model: onnx.ModelProto) -> None:
    """A type tag that is not that of the value."""
    if given := [a for n in nodes_of(model) for a in n.attribute]:
        rng.choice(given).type = rng.randint(0, 14)


def change_inputs(rng: Random, model: onnx.ModelProto) -> None:
    """Swapped, dropped, repeated, absent or foreign operands; circles come of the last."""
    if given := [n for n in nodes_of(model) if n.input]:
        node = rng.choice(given)
        operands = list(node.input)
        at, other = rng.randrange(len(operands)), rng.randrange(len(operands))
        kind = rng.randrange(5)
        if kind == 0:
            operands[at], operands[other] = operands[other], operands[at]
        elif kind == 1:
            operands.pop(at)
        elif kind == 2:
            operands.append(rng.choice(operands))
        elif kind == 3:
            operands[at] = ""
        else:
            operands[at] = rng.choice((*_names(model), "nowhere"))
        del node.input[:]
        node.input.extend(operands)


def change_outputs(rng: Random, model: onnx.ModelProto) -> None:
    node = rng.choice(nodes_of(model))
    results = [rng.choice((*_names(model), *NAMES)), *node.output[1:]] if rng.random() < 0.5 else [*node.output, rng.choice(NAMES)]
    del node.output[:]
    node.output.extend(results[: rng.randint(0, 4)])


def change_nodes(rng: Random, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    kind = rng.randrange(3)
    if kind == 0:
        nodes.pop(rng.randrange(len(nodes)))
    elif kind == 1:
        nodes.append(rng.choice(nodes))
    else:
        rng.shuffle(nodes)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def change_operator(rng: Random, model: onnx.ModelProto) -> None:
    node = rng.choice(nodes_of(model))
    if rng.random() < 0.9:
        node.op_type = rng.choice(OPERATORS)
    else:
        node.domain = rng.choice(DOMAINS)


def change_opset(rng: Random, model: onnx.ModelProto) -> None:
    entry = rng.choice(model.opset_import or (model.opset_import.add(),))
    if rng.random() < 0.8:
        entry.version = rng.choice((*range(1, 27), 0, -1, 10**9, -(2**63)))
    else:
        entry.domain = rng.choice(DOMAINS)


def change_dims(rng: Random, model: onnx.ModelProto) -> None:
    if given := tensors_of(model):
        change_list(rng, rng.choice(given).dims, number)


def change_type(rng: Random, model: onnx.ModelProto) -> None:
    if given := tensors_of(model):
        rng.choice(given).data_type = rng.choice((*range(26), -1, 1000))


def change_data(rng: Random, model: onnx.ModelProto) -> None:
    """raw_data of the wrong length, none at all, or that of another field."""
    if given := tensors_of(model):
        tensor = rng.choice(given)
        kind = rng.randrange(4)
        if kind == 0:
            tensor.raw_data = tensor.raw_data[: rng.randint(0, len(tensor.raw_data))]
        elif kind == 1:
            tensor.raw_data += b"\1" * rng.randint(1, 9)
        elif kind == 2:
            tensor.ClearField("raw_data")
        else:
            tensor.int32_data.extend([number(rng) % 2**31] * rng.randint(1, 5))


def change_content(rng: Random, model: onnx.ModelProto) -> None:
    """Well-formed initializers that hold absurd numbers: shapes, axes, scales, sizes."""
    if given := [t for t in tensors_of(model) if 0 < len(t.raw_data) <= 4096]:
        tensor = rng.choice(given)
        fresh = {TensorProto.FLOAT: lambda: rng.choice(FLOATS), TensorProto.INT64: lambda: number(rng)}.get(tensor.data_type)
        size = {TensorProto.FLOAT: 4, TensorProto.INT64: 8}.get(tensor.data_type, 1)
        at = rng.randrange(-(-len(tensor.raw_data) // size)) * size
        new = rng.randbytes(1) if fresh is None else helper.make_tensor("t", tensor.data_type, [1], [fresh()])
        data = new if isinstance(new, bytes) else onnx.numpy_helper.to_array(new).tobytes()
        tensor.raw_data = tensor.raw_data[:at] + data + tensor.raw_data[at + size :]


def change_graph_inputs(rng: Random, model: onnx.ModelProto) -> None:
    if not model.graph.input:
        return
    value = rng.choice(model.graph.input)
    kind = rng.randrange(6)
    if kind == 0:
        value.type.tensor_type.elem_type = rng.randint(-1, 26)
    elif kind == 1:
        value.type.ClearField("tensor_type")
    elif kind == 2:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif kind == 3:
        value.name = rng.choice((*_names(model), *NAMES))
    elif value.type.tensor_type.shape.dim and kind == 4:
        dim = rng.choice(value.type.tensor_type.shape.dim)
        dim.dim_value = number(rng)
    else:
        value.type.tensor_type.shape.dim.add(dim_param=rng.choice(NAMES))


def change_graph_outputs(rng: Random, model: onnx.ModelProto) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        model.graph.output.add(name=rng.choice((*_names(model), *NAMES)))
    elif kind == 1 and model.graph.output:
        model.graph.output.pop(rng.randrange(len(model.graph.output)))
    elif model.graph.output:
        rng.choice(model.graph.output).CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, rng.randint(0, 20), [number(rng)]))


def rename(rng: Random, model: onnx.ModelProto) -> None:
    """One name, everywhere or at one place alone."""
    old, new = rng.choice((*_names(model), "nothing")), rng.choice(NAMES)
    everywhere = rng.random() < 0.7
    for node in nodes_of(model):
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old and (everywhere or rng.random() < 0.5):
                    names[index] = new
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        if value.name == old and everywhere:
            value.name = new


def external(rng: Random, model: onnx.ModelProto) -> None:
    """External data at places inside and outside the folder, with absurd offsets and lengths."""
    if given := tensors_of(model):
        tensor = rng.choice(given)
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": rng.choice(("weights", rng.choice(LOCATIONS)))}
        if rng.random() < 0.7:
            entries["offset"] = rng.choice(("0", "1", "-1", "3", "1e3", "4096", str(2**63), str(-(2**64)), "", "٣", " 8", "9" * 5000))
        if rng.random() < 0.7:
            entries["length"] = rng.choice((str(size), str(size), "0", "-1", str(2**64), "nan", "0x10", "9" * 5000))
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)


def nest(rng: Random, model: onnx.ModelProto) -> None:
    """The graph's nodes inside many nested branches."""
    condition = helper.make_tensor("nested condition", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    results = [value.name for value in model.graph.output]
    nodes = list(model.graph.node)
    depth = rng.choice((1, 3, 12, 15))
    empty = helper.make_graph([], "", [], [])
    for level in range(depth):
        inner = helper.make_graph(nodes, f"level {level}", [], [onnx.ValueInfoProto(name=name) for name in results])
        nodes = [helper.make_node("If", [condition.name], results, then_branch=inner, else_branch=inner if depth <= 3 else empty)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def recurse(rng: Random, model: onnx.ModelProto) -> None:
    """Functions that call themselves, each other, one another in a long chain, or twice at each level."""
    kind = rng.choice(("self", "pair", "chain", "double"))
    levels = {"self": 1, "pair": 2, "chain": 3000, "double": 60}[kind]
    opsets = [*model.opset_import, helper.make_opsetid("fuzz", 1)]
    for level in range(levels):
        target = f"f{(level + 1) % levels}"
        calls = [helper.make_node(target, ["a"], ["b"], domain="fuzz")]
        if kind == "double":
            calls = [helper.make_node(target, ["a"], ["m"], domain="fuzz"), helper.make_node(target, ["m"], ["b"], domain="fuzz")]
        if kind in ("chain", "double") and level == levels - 1:
            calls = [helper.make_node("Identity", ["a"], ["b"])]
        model.functions.append(helper.make_function("fuzz", f"f{level}", ["a"], ["b"], calls, opsets))
    model.opset_import.append(helper.make_opsetid("fuzz", 1))
    node = rng.choice(model.graph.node)
    if node.output:
        result, node.output[0] = node.output[0], "before the functions"
        model.graph.node.append(helper.make_node("f0", ["before the functions"], [result], domain="fuzz"))


def unused_parts(rng: Random, model: onnx.ModelProto) -> None:
    """Parts of a model file that compilation has no use for."""
    kind = rng.randrange(5)
    if kind == 0:
        model.graph.sparse_initializer.add().dims.extend([number(rng), 2])
    elif kind == 1:
        model.training_info.add().algorithm.CopyFrom(model.graph)
    elif kind == 2:
        model.graph.quantization_annotation.add(tensor_name=rng.choice(NAMES))
    elif kind == 3:
        model.metadata_props.add(key=rng.choice(NAMES), value="v" * 10000)
    else:
        model.graph.name = rng.choice(NAMES)
        model.ir_version = number(rng)


def mistype_parts(rng: Random, model: onnx.ModelProto) -> None:
    """Whole parts removed."""
    part = rng.choice(("opset_import", "graph", "ir_version", "functions"))
    model.ClearField(part)


MUTATIONS: tuple[Mutation, ...] = (
    drop_attribute,
    change_attribute,
    change_attribute,
    change_attribute,
    retype_attribute,
    foreign_attribute,
    mistype_attribute,
    change_inputs,
    change_inputs,
    change_outputs,
    change_nodes,
    change_operator,
    change_opset,
    change_dims,
    change_type,
    change_data,
    change_content,
    change_content,
    change_content,
    change_graph_inputs,
    change_graph_inputs,
    change_graph_outputs,
    rename,
    external,
    nest,
    recurse,
    unused_parts,
    mistype_parts,
)


def mutated(rng: Random, model: onnx.ModelProto) -> tuple[bytes, str]:
    """The bytes of a damaged model, and what was done to it."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if nodes_of(model):
            step = rng.choice(MUTATIONS)
            step(rng, model)
            done.append(step.__name__)
    data = model.SerializeToString()
    if rng.random() < 0.2:
        data, what = _damaged_bytes(rng, data)
        done.append(what)
    return data, ", ".join(done)


def _damaged_bytes(rng: Random, data: bytes) -> tuple[bytes, str]:
    kind = rng.choice(("bits", "bits", "cut", "insert", "random", "splice", "deep"))
    buffer = bytearray(data)
    if kind == "bits":
        for _ in range(rng.randint(1, 8)):
            buffer[rng.randrange(len(buffer))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del buffer[rng.randrange(len(buffer)) :]
    elif kind == "insert":
        at = rng.randrange(len(buffer))
        buffer[at:at] = rng.randbytes(rng.randint(1, 40))
    elif kind == "random":
        buffer[:] = rng.randbytes(rng.randint(1, 400))
    elif kind == "deep":
        buffer[:] = _nested_graphs(rng.choice((20, 40, 3000)))
    else:
        first, second = rng.randrange(len(buffer)), rng.randrange(len(buffer))
        buffer[first:] = buffer[second:]
    return bytes(buffer), kind


def _nested_graphs(depth: int) -> bytes:
    """Subgraphs of subgraphs, deeper than the library would write them."""
    data = b""
    for field in (7, *(1, 5, 6) * depth)[::-1]:  # the model's graph, a node, its attribute, that one's graph
        length, rest = bytearray(), len(data)
        while rest > 127:
            length.append(rest & 127 | 128)
            rest >>= 7
        data = bytes((field << 3 | 2,)) + bytes((*length, rest)) + data
    return data


def surroundings(folder: Path) -> Path:
    """Lay out a folder for models, with files around it that no model may read; the folder."""
    inside = folder / "model"
    (inside / "sub").mkdir(parents=True)
    (folder / "secret").write_bytes(b"secret" * 4000)
    (inside / "weights").write_bytes(bytes(range(256)) * 80)
    (inside / "link").symlink_to(folder / "secret")
    os.mkfifo(inside / "fifo")
    return inside
