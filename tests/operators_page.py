"""docs/operators.md: what each operator accepts, what it becomes, and how far its results are from the reference's.

All of it comes from the op files: their forms, and what importing, lowering and running their samples gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from test_ops import expected, feeds_of, one_node_model
from test_ops_native import merged

import tensorsmith
from compiler.errors import UserError
from compiler.ir.op import OnnxForm, Sample, all_ops, lookup
from compiler.ir.types import DType
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import native, resolve
from frontend.onnx.control import BRANCHES
from frontend.onnx.importer import import_model
from frontend.onnx.sequences import SEQUENCE_OPS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
_DOMAINS = {"": "ONNX", "ai.onnx.ml": "ai.onnx.ml", "com.microsoft": "com.microsoft"}
_GROUPS: dict[str, tuple[DType, ...]] = {
    "floats": (DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16),
    "integers": tuple(dtype for dtype in DType if re.fullmatch("[iu](8|16|32|64)", dtype.value)),
    "narrow": tuple(dtype for dtype in DType if re.fullmatch("f[468]e.*|[iu][24]", dtype.value)),
}
_TARGET = "x86-64-v3"
"""Its element types and families stand on the page, whatever the machine that makes it."""

Key = tuple[str, str]
"""Domain and name of an ONNX operator."""


def page(differences: Mapping[Key, str]) -> str:
    """The page as Markdown; operators without a known difference have a dash."""
    groups = ", ".join(f"*{name}* are {' '.join(dtype.value for dtype in dtypes)}" for name, dtypes in _GROUPS.items())
    parts = [
        "# Operators\n",
        "Made from the op files by `pytest tests/test_operators_page.py --bless`; a test checks that it is current, but for the last column.\n",
        "- **opsets**: versions of the operator set in which a node is read.",
        "- **types**: element types of the first input that a node compiles for; of operators outside the standard, those of their samples.",
        f"  {groups}.",
        "- **becomes**: the canonical ops its samples are imported as, less views. What is known before the model runs becomes nothing.",
        "- **kernels**: the families that build those ops; of one op, the first that supports its operands.",
        "- **difference**: the worst over its samples between native code and the reference (ONNX's own, or ONNX Runtime), the rounding of both",
        "  counted, in units in the last place of the value wanted, or of a tenth of the tensor's largest where that is more. Measured when the page",
        f"  was made, for {native().vector_bits}-bit vectors: the order of sums depends on their width, so that no test compares this column.\n",
        "Operators that the standard defines by others and that have no line here are expanded by that definition. Nor is there one for "
        f"{', '.join(sorted((*BRANCHES, *SEQUENCE_OPS)))}: what they are given, of any type, goes through branches, loops and data movement.",
    ]
    forms, samples = _forms(), _samples()
    for domain, title in _DOMAINS.items():
        parts += [f"\n## {title}\n", "| operator | opsets | types | becomes | kernels | difference |", "|---|---|---|---|---|---|"]
        for key in sorted(key for key in forms if key[0] == domain):
            parts.append(_line(key, forms[key], samples.get(key, ()), differences.get(key, "–")))
    return "\n".join(parts) + "\n"


def without_differences(text: str) -> str:
    """The page without what is measured."""
    return re.sub(r"[^|\n]*\|$", "|", re.sub(r"\d+-bit vectors", "vectors", text), flags=re.MULTILINE)


def _forms() -> dict[Key, list[OnnxForm]]:
    forms: dict[Key, list[OnnxForm]] = {}
    for op in all_ops():
        for form in op.forms:
            forms.setdefault((form.domain, form.op_type), []).append(form)
    return forms


def _samples() -> dict[Key, list[Sample]]:
    samples: dict[Key, list[Sample]] = {}
    for op in all_ops():
        for sample in op.samples:
            samples.setdefault((sample.domain, sample.op_type), []).append(sample)
    return samples


def _line(key: Key, forms: Sequence[OnnxForm], samples: Sequence[Sample], difference: str) -> str:
    ops = _canonical(samples)
    families = dict.fromkeys(family for op in ops for family in lookup(op).families)
    cells = (key[1], _opsets(key, forms), _types(samples), ", ".join(ops), ", ".join(families), difference)
    return "| " + " | ".join(cell or "–" for cell in cells) + " |"


def _opsets(key: Key, forms: Iterable[OnnxForm]) -> str:
    """The ranges of versions, joined where they touch; none begins before the operator was introduced."""
    versions = [schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if (schema.domain, schema.name) == key]
    first, ranges = min(versions, default=1), list[tuple[int, int | None]]()
    for form in sorted(forms, key=lambda form: form.since):
        since = max(form.since, first)
        if ranges and ranges[-1][1] is not None and since <= ranges[-1][1] + 1:
            since = ranges.pop()[0]
        ranges.append((since, form.until))
    return ", ".join(f"{since}+" if until is None else f"{since}–{until}" for since, until in ranges)


def _canonical(samples: Iterable[Sample]) -> list[str]:
    """The canonical ops that samples are imported as, in order of appearance."""
    nodes = (node for sample in samples for node in import_model(one_node_model(sample)).nodes)
    return list(dict.fromkeys(node.op for node in nodes if not lookup(node.op).is_view))


def _types(samples: Sequence[Sample]) -> str:
    """The element types that a sample compiles for when its first input, and those tied to it, have them.

    Of an operator without a schema those of its samples: nothing says what else a node may have.
    """
    first = [sample for sample in samples if sample.inputs and sample.inputs[0] is not None]
    given = {DType.of(sample.inputs[0].dtype) for sample in first}
    tried = [(sample, _schema(sample)) for sample in first]
    found = given | {dtype for dtype in DType if any(_takes(sample, schema, dtype) for sample, schema in tried if schema is not None)}
    words = []
    for name, group in _GROUPS.items():
        if found.issuperset(group):
            words.append(name)
            found.difference_update(group)
    return " ".join([*words, *(dtype.value for dtype in DType if dtype in found)])


def _schema(sample: Sample) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(sample.op_type, sample.domain) if onnx.defs.has(sample.op_type, sample.domain) else None


def _takes(sample: Sample, schema: onnx.defs.OpSchema, dtype: DType) -> bool:
    """Whether the sample compiles with another element type, in its opset or, as newer ones allow more, in the newest."""
    formal = [schema.inputs[min(index, len(schema.inputs) - 1)] for index in range(len(sample.inputs))]
    name = {DType.FLOAT32: "float", DType.FLOAT64: "double"}.get(dtype, dtype.name.lower())
    if f"tensor({name})" not in formal[0].types:
        return False
    with np.errstate(all="ignore"):
        inputs = tuple(
            _converted(x, dtype) if x is not None and kind.type_str == formal[0].type_str else x
            for x, kind in zip(sample.inputs, formal, strict=True)
        )
        variants = {opset: replace(sample, inputs=inputs, opset=opset) for opset in (sample.opset, onnx.defs.onnx_opset_version())}
        return any(_compiles(variant) for opset, variant in variants.items() if opset == sample.opset or not sample.domain)


def _converted(x: np.ndarray, dtype: DType) -> np.ndarray:
    """x in another element type: numbers as strings, and strings as zeros."""
    numbers = np.zeros(x.shape, np.float32) if x.dtype == object else x.astype(np.float32)
    return numbers.astype(str).astype(object) if dtype is DType.STRING else numbers.astype(dtype.numpy)


def _compiles(sample: Sample) -> bool:
    target = resolve(_TARGET)
    try:
        lower(optimize(import_model(one_node_model(sample)), target)[0], target, 1)
    except UserError:
        return False
    return True


def measured() -> dict[Key, str]:
    """The worst difference of each operator over its samples, compiled and run on this machine."""
    return {key: _difference(samples) for key, samples in _samples().items()}


def _difference(samples: Sequence[Sample]) -> str:
    worst = 0.0
    for opset in sorted({sample.opset for sample in samples}):
        group = [(str(k), sample) for k, sample in enumerate(samples) if sample.opset == opset]
        feeds = {f"s{k}/{name}": array for k, (_, sample) in enumerate(group) for name, array in feeds_of(sample).items()}
        got = tensorsmith.compile(merged(group), cache=False, threads=1).run(feeds)
        for k, (_, sample) in enumerate(group):
            for index, want in enumerate(expected(one_node_model(sample), sample)):
                worst = max(worst, ulps(got[f"s{k}/y{index}"], want))
    return "exact" if worst == 0 else f"{worst:.2g}"


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference in units in the last place of what is wanted; of integers and codes, in ones; of strings, nothing or infinite."""
    if want.dtype == object:
        return 0.0 if got.tolist() == want.tolist() else np.inf
    dtype, x, y = DType.of(want.dtype), got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(y)
    if not finite.any():
        return 0.0
    error, wanted = np.abs(x[finite] - y[finite]), np.abs(y[finite])
    magnitude = np.maximum(wanted, wanted.max() / 10)
    if dtype is DType.BFLOAT16:
        unit = np.spacing(magnitude.astype(np.float32)).astype(np.float64) * 2.0**16
    elif want.dtype.kind == "f":
        unit = np.spacing(magnitude.astype(want.dtype)).astype(np.float64)
    else:
        unit = np.ones_like(error)
    return float(np.max(error / unit))
