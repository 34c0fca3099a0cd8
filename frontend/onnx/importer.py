"""ONNX to canonical Graph IR. Op files say what each operator means (``OnnxForm``); this walks the model and asks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, defs

import compiler.ops  # noqa: F401 - registers the operators
from compiler.errors import UnsupportedError, UnsupportedForm, UserError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.op import FormContext, OnnxForm, all_ops
from frontend.onnx.borders import border_attrs, handed_out, part_names
from frontend.onnx.control import BRANCHES, import_if, import_loop, import_map
from frontend.onnx.emitter import Emitter
from frontend.onnx.entries import Entry, kind_of, values_of
from frontend.onnx.functions import call_attributes, has_body, resolved, standard_body, unknown_operator
from frontend.onnx.inputs import declared_ranks, graph_inputs, static_shapes
from frontend.onnx.order import describe, names_read, ordered
from frontend.onnx.reading import TensorReader, initializers, read_model
from frontend.onnx.scan import import_scan
from frontend.onnx.schema import check_node
from frontend.onnx.scope import Scope
from frontend.onnx.sequences import SEQUENCE_OPS, Call
from frontend.onnx.texts import check_texts


def import_model(model: str | Path | bytes | onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """The model as a canonical graph. ``input_shapes`` gives inputs their shapes and so binds symbolic dims.

    Graph attributes ``input_names`` and ``output_names`` hold ONNX's names in order; the values' own names are these with characters
    that the text form does not allow replaced. Initializers stay views of the model's bytes or of its external files.

    Raises UserError for a file that cannot be read, an invalid graph or shapes that do not fit; UnsupportedError, listing every such
    node, for operators or forms of them that cannot be compiled.
    """
    proto, folder, where = read_model(model)
    check_texts(proto, where)
    return _Importer(proto, folder, where).run(input_shapes)


@cache
def _forms() -> Mapping[tuple[str, str], tuple[OnnxForm, ...]]:
    found: dict[tuple[str, str], tuple[OnnxForm, ...]] = {}
    for op in all_ops():
        for form in op.forms:
            key = (form.domain, form.op_type)
            found[key] = (*found.get(key, ()), form)
    return found


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


_UNUSABLE = (ArithmeticError, LookupError, MemoryError, TypeError, ValueError)
"""What Python and numpy raise where a node's attributes or constants have the wrong type or are out of range."""

_CALL_DEPTH = 64
"""Calls of functions within each other; each level takes some of Python's stack."""

_NESTED_CALLS = 10_000
"""Calls made within functions: functions that call others twice double them at each level."""

_NODES_OF_ONE = 4096
"""Nodes that one node may become: an attribute such as a window's length must not decide how long compilation takes."""


class _Importer:
    def __init__(self, proto: onnx.ModelProto, folder: Path | None, where: str) -> None:
        self._proto = proto
        self.where = where
        self._reader = TensorReader(folder, where)
        self._builder = GraphBuilder(proto.graph.name or "model")
        self._functions = {(_domain(f.domain), f.name, f.overload): f for f in proto.functions}
        self._nested_calls = 0
        self.failures: list[str] = []
        self._cause: Exception | None = None

    def run(self, input_shapes: Mapping[str, Sequence[int]] | None) -> Graph:
        graph = self._proto.graph
        told = (*graph.value_info, *graph.output)
        scope = Scope(self._opsets(self._proto.opset_import), self._builder, tensors=initializers(graph))
        scope.declared, scope.ranks = static_shapes(told), declared_ranks(told)
        inputs = [value for value in graph.input if value.name not in scope.tensors]
        names = [value.name for value in inputs]
        for name, count in (Counter(names) + Counter(t.name for t in (*graph.initializer, *(s.values for s in graph.sparse_initializer)))).items():
            if count > 1:
                raise UserError(f"input or initializer {name!r} is defined twice", where=self.where, hint="export the model again")
        outputs = [value.name for value in graph.output]
        for name, count in Counter(outputs).items():
            if count > 1:
                raise UserError(f"output {name!r} is listed twice", where=self.where, hint="give each output a name of its own")
        nodes = ordered(graph.node, (*names, *scope.tensors), outputs, self.where)
        try:
            given = graph_inputs(inputs, input_shapes, self.where)
        except UnsupportedForm as error:
            raise self._unsupported([str(error)]) from error
        scope.values.update({name: value.entry(self._builder, name) for name, value in given.items()})
        entered = {name: scope.values[name] for name in names}
        reserved = {name: self._builder.unique(name) for name in outputs}
        self.nodes(nodes, outputs, scope)
        if self.failures:
            raise self._unsupported(self.failures) from self._cause
        try:
            made = {v.name: handed_out(Emitter(self._builder, f"output {v.name!r}"), self.entry(v.name, scope), v) for v in graph.output}
        except UnsupportedForm as error:
            raise self._unsupported([str(error)]) from error
        return self._finish(entered, made, reserved)

    def _unsupported(self, items: Sequence[str]) -> UnsupportedError:
        return UnsupportedError(
            "the model needs what is not supported:",
            where=self.where,
            hint="replace these nodes before export, or report the operators you need",
            items=tuple(items),
        )

    def _opsets(self, imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
        opsets = {_domain(entry.domain): entry.version for entry in imports}
        newest = defs.onnx_opset_version()
        if opsets.get("", 0) > newest:
            raise UserError(
                f"the model uses opset {opsets['']}; the onnx package here knows opsets up to {newest}",
                where=self.where,
                hint="install a newer onnx package, or convert the model with onnx.version_converter",
            )
        return opsets

    def _finish(self, entered: Mapping[str, Entry], made: Mapping[str, Entry], reserved: Mapping[str, str]) -> Graph:
        """The graph with its outputs under their own names; an output that is an input, a constant or another output becomes a copy."""
        builder = self._builder
        renamed: dict[Value, Value] = {}
        outputs = []
        for label, entry in made.items():
            for value, name in zip(values_of(entry), part_names(reserved[label], entry), strict=True):
                source = value if builder.producer(value) is not None and value not in renamed else self._copied(value)
                renamed[source] = Value(name if isinstance(entry, Value) else builder.unique(name), source.type)
                outputs.append(renamed[source])
        nodes = tuple(_renamed(node, renamed) for node in builder.nodes)
        return builder.graph(outputs).with_(nodes=nodes, attrs={**border_attrs("input", entered), **border_attrs("output", made)})

    def _copied(self, value: Value) -> Value:
        """A copy that is not folded away."""
        copy = Value(self._builder.unique("identity"), value.type)
        self._builder.append(Node("identity", (value,), (copy,)))
        return copy

    def entry(self, name: str, scope: Scope) -> Entry:
        """What a name stands for in scope: it is looked up there, then in the scopes around."""
        if name not in scope.values:
            if name in scope.tensors:
                scope.values[name] = scope.builder.constant(self._reader.array(scope.tensors[name]), name)
            elif scope.around is None:
                raise UnsupportedForm(f"value {name!r} is read, but it is not made")
            else:
                scope.values[name] = scope.take(self.entry(name, scope.around))
        return scope.values[name]

    def _value(self, name: str, scope: Scope) -> Value:
        value = self.entry(name, scope)
        if not isinstance(value, Value):
            raise UnsupportedForm(f"value {name!r} is read as a tensor, and it is {kind_of(value)}")
        return value

    def nodes(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], scope: Scope) -> None:
        """Import nodes in order; what fails is recorded, and what depends on it is only asked whether it could be imported at all."""
        used = set(outputs).union(*(names_read(node) for node in nodes))
        for node in nodes:
            count = max((position + 1 for position, name in enumerate(node.output) if name in used), default=1)
            try:
                if scope.broken.intersection(names_read(node)):
                    self._check_known(node, scope)
                    scope.broken.update(node.output)
                    continue
                results = self._node(node, count, scope)
            except UnsupportedForm as error:
                self._fail(node, scope, str(error))
                scope.broken.update(node.output)
                continue
            except _UNUSABLE as error:
                self._fail(node, scope, f"its attributes or constant operands cannot be used: {error or type(error).__name__}")
                self._cause = self._cause or error
                scope.broken.update(node.output)
                continue
            if results is None:
                scope.broken.update(node.output)
                continue
            scope.values.update(results)
            if unmade := [name for name in node.output[:count] if name and name not in scope.values]:
                self._fail(node, scope, f"it does not make as many results as are read of it: {', '.join(map(repr, unmade))}")
                scope.broken.update(unmade)

    def _fail(self, node: onnx.NodeProto, scope: Scope, reason: str) -> None:
        domain = _domain(node.domain)
        place = f" (opset {scope.opsets[domain]})" if domain in scope.opsets else ""
        operator = f"{domain}.{node.op_type}" if domain else node.op_type
        name = f"{node.name!r}" if node.name else f"that makes {next(iter(node.output), '')!r}"
        self.failures.append(f"{operator}{place}, node {scope.prefix}{name}: {reason}")

    def _check_known(self, node: onnx.NodeProto, scope: Scope) -> None:
        domain = _domain(node.domain)
        if (domain, node.op_type, node.overload) in self._functions:
            return
        opset = self._opset(domain, scope)
        if domain == "" and (node.op_type in BRANCHES or node.op_type in SEQUENCE_OPS):
            return
        if self._form(node, domain, opset) is None and not has_body(node.op_type, opset, domain):
            raise UnsupportedForm(unknown_operator(node.op_type, opset, domain))

    def _opset(self, domain: str, scope: Scope) -> int:
        opset = scope.opsets.get(domain)
        if opset is None:
            raise UnsupportedForm(f"the model does not import the opset of domain {domain or 'ai.onnx'!r}")
        return opset

    @staticmethod
    def _form(node: onnx.NodeProto, domain: str, opset: int) -> OnnxForm | None:
        return next((form for form in _forms().get((domain, node.op_type), ()) if form.accepts(opset)), None)

    def _node(self, node: onnx.NodeProto, outputs: int, scope: Scope) -> Mapping[str, Entry] | None:
        """The results of one node by name; None where a function or a subgraph of the model failed, which is recorded already."""
        domain = _domain(node.domain)
        entries = tuple(self.entry(name, scope) if name else None for name in node.input)
        local = self._functions.get((domain, node.op_type, node.overload))
        if local is not None:
            return self._call(local, node, entries, scope)
        opset = self._opset(domain, scope)
        given = resolved(node, scope.attributes)
        inputs = tuple(entry if isinstance(entry, Value) else None for entry in entries)
        check_node(node.op_type, opset, domain, inputs, given)
        if domain == "" and (node.op_type in BRANCHES or node.op_type in SEQUENCE_OPS):
            found = self._structure(node, entries, {a.name: self._attribute(a) for a in given}, opset, scope)
            return None if found is None else dict(zip(node.output, found, strict=False))
        other = next((entry for entry in entries if not isinstance(entry, Value | None)), None)
        if other is not None:
            if node.op_type == "Identity":
                return {node.output[0]: other}
            raise UnsupportedForm(f"an operand is {kind_of(other)}, where the operator takes tensors")
        form = self._form(node, domain, opset)
        refusal: UnsupportedForm | None = None
        if form is not None:
            attrs = {a.name: self._attribute(a) for a in given}
            name = scope.prefix + (node.name or next(iter(node.output), ""))
            scope.builder.node_limit = len(scope.builder.nodes) + _NODES_OF_ONE
            try:
                declared = tuple(scope.declared.get(output) for output in node.output)
                results = form.build(FormContext(node.op_type, inputs, attrs, opset, scope.builder, outputs, name, declared))
            except UnsupportedForm as error:
                refusal = error
            except KeyError as error:
                raise UnsupportedForm(f"attribute {error} is missing") from error
            else:
                return dict(zip(node.output, (results,) if isinstance(results, Value) else results, strict=False))
        body = standard_body(self._standalone(node, scope), domain, opset, inputs)
        if body is None:
            raise refusal or UnsupportedForm(unknown_operator(node.op_type, opset, domain))
        return self._standard_call(body, node, inputs, scope, refusal)

    def _structure(self, node: onnx.NodeProto, entries: Sequence[Entry], attrs: Mapping[str, Any], opset: int, scope: Scope) -> list[Entry] | None:
        """The results of a node that has subgraphs, or works on sequences and optional values."""
        scope.builder.node_limit = None
        match node.op_type:
            case "If":
                condition = self._value(node.input[0], scope)
                return import_if(self, node, condition, attrs["then_branch"].g, attrs["else_branch"].g, scope)
            case "Loop":
                return import_loop(self, node, entries, attrs["body"].g, scope)
            case "Scan":
                return import_scan(self, node, entries, attrs, opset, scope)
            case "SequenceMap":
                return import_map(self, node, entries, attrs["body"].g, scope)
        emit = Emitter(scope.builder, describe(node))
        return [SEQUENCE_OPS[node.op_type](Call(emit, entries, attrs, scope.ranks.get(next(iter(node.output), ""))))]

    @staticmethod
    def _standalone(node: onnx.NodeProto, scope: Scope) -> onnx.NodeProto:
        """The node with references to a function's attributes replaced by their values."""
        if not any(attribute.ref_attr_name for attribute in node.attribute):
            return node
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.attribute[:]
        copy.attribute.extend(resolved(node, scope.attributes))
        return copy

    def _standard_call(
        self, body: onnx.FunctionProto, node: onnx.NodeProto, inputs: Sequence[Value | None], scope: Scope, refusal: UnsupportedForm | None
    ) -> Mapping[str, Entry]:
        """The standard's body of an operator; its own failures become one of the node."""
        before, self.failures = self.failures, []
        try:
            results = self._call(body, node, inputs, scope)
            failures = self.failures
        finally:
            self.failures = before
        if results is None:
            raise refusal or UnsupportedForm(f"its standard definition needs {'; '.join(failures)}")
        return results

    def _call(self, function: onnx.FunctionProto, node: onnx.NodeProto, inputs: Sequence[Entry], scope: Scope) -> Mapping[str, Entry] | None:
        """A function's body in the place of the node that calls it; None where something in it failed."""
        key = (_domain(function.domain), function.name, function.overload)
        if key in scope.calls:
            raise UserError(f"function {function.name!r} calls itself", where=self.where, hint="export the model without recursion")
        self._nested_calls += bool(scope.calls)
        if len(scope.calls) == _CALL_DEPTH or self._nested_calls > _NESTED_CALLS:
            what = f"more than {_CALL_DEPTH} calls within each other" if len(scope.calls) == _CALL_DEPTH else f"more than {_NESTED_CALLS} calls"
            raise UserError(f"its functions unfold to {what}", where=self.where, hint="export the model with its functions inlined")
        arguments = dict.fromkeys(function.input) | dict(zip(function.input, inputs, strict=False))
        inner = Scope(
            {**scope.opsets, **self._opsets(function.opset_import)},
            scope.builder,
            values=arguments,
            attributes=call_attributes(function, node, scope.opsets.get(_domain(node.domain)), scope.attributes),
            prefix=f"{scope.prefix}{node.name or node.op_type}/",
            calls=(*scope.calls, key),
        )
        outputs = [formal for formal, name in zip(function.output, node.output, strict=False) if name]
        nodes = ordered(function.node, function.input, outputs, f"{self.where}, function {function.name}")
        before = len(self.failures)
        self.nodes(nodes, outputs, inner)
        if len(self.failures) > before:
            return None
        return dict(zip(filter(None, node.output), (self.entry(name, inner) for name in outputs), strict=True))

    def _attribute(self, attribute: AttributeProto) -> Any:
        """An attribute's value: int, float, str, a tuple of these, or an array; subgraphs stay as they are."""
        match attribute.type:
            case AttributeProto.FLOAT:
                return attribute.f
            case AttributeProto.INT:
                return attribute.i
            case AttributeProto.STRING:
                return attribute.s.decode()
            case AttributeProto.TENSOR:
                return self._reader.array(attribute.t)
            case AttributeProto.SPARSE_TENSOR:
                return self._reader.array(attribute.sparse_tensor)
            case AttributeProto.FLOATS:
                return tuple(attribute.floats)
            case AttributeProto.INTS:
                return tuple(attribute.ints)
            case AttributeProto.STRINGS:
                return tuple(s.decode() for s in attribute.strings)
            case _:
                return attribute


def _renamed(node: Node, renamed: Mapping[Value, Value]) -> Node:
    if not any(value in renamed for value in (*node.inputs, *node.outputs)):
        return node
    inputs = tuple(None if v is None else renamed.get(v, v) for v in node.inputs)
    return replace(node, inputs=inputs, outputs=tuple(renamed.get(v, v) for v in node.outputs))
