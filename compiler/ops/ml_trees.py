"""Ensembles of decision trees from the domain ``ai.onnx.ml``: all trees of all rows go down one level at a time, by gathers of node tables.

https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Array, Value
from compiler.ir.op import FormContext, OnnxForm, Sample, extend
from compiler.ir.types import DType
from compiler.ops.gather import Gather
from compiler.ops.ml_features import MACHINE_LEARNING, first_rows, sample
from compiler.ops.ml_linear import best_label, floats_of, labels_of, transformed, two_labels
from compiler.ops.reduce import reduce
from compiler.ops.support import cast_to, reshape, scalar_like

_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
_SWAPPED = {"BRANCH_GTE": "BRANCH_LT", "BRANCH_GT": "BRANCH_LEQ", "BRANCH_NEQ": "BRANCH_EQ"}
"""Tests that become others with their branches exchanged."""
_TESTS = {"BRANCH_LEQ": "less_or_equal", "BRANCH_LT": "less", "BRANCH_EQ": "equal"}
_MOST_LEVELS = 256
"""Each level of the trees becomes some kernels."""
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


@dataclass
class _Forest:
    """Nodes by number; a leaf's children are itself. ``modes`` are those of ``_TESTS`` or LEAF."""

    roots: list[int] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    children: list[tuple[int, int]] = field(default_factory=list)
    missing: list[bool] = field(default_factory=list)

    def leaf(self) -> int:
        """A new leaf."""
        return self._add("LEAF", 0, 0.0, (len(self.modes), len(self.modes)), missing=False)

    def branch(self, mode: str, feature: int, threshold: float, true: int, false: int, *, missing: bool) -> int:
        """A new branch. ``missing``: where NaN goes. Children may be numbers yet to come."""
        if mode in _SWAPPED:
            return self._add(_SWAPPED[mode], feature, threshold, (true, false), missing=not missing)
        return self._add(mode, feature, threshold, (false, true), missing=missing)

    def members(self, number: int, values: Sequence[float]) -> None:
        """Make a branch a chain of tests for equality with each of values."""
        mode, (false, true), missing = "BRANCH_EQ", self.children[number], self.missing[number]
        self.modes[number], self.thresholds[number] = mode, values[0] if values else np.nan
        for value in values[1:]:
            further = self._add(mode, self.features[number], value, (false, true), missing=missing)
            self.children[number] = (further, true)
            number = further

    def levels(self) -> int:
        """The most branches from a root to a leaf. Raises UnsupportedForm where there is no end, or too far a one."""
        children, leaf = np.array(self.children, np.int64).reshape(-1, 2), np.array([mode == "LEAF" for mode in self.modes])
        if children.size and (children.min() < 0 or children.max() >= len(leaf)):
            raise UnsupportedForm("a node's branch is a node that does not exist")
        level = np.unique(np.array(self.roots, np.int64))
        for depth in range(_MOST_LEVELS + 1):
            level = level[~leaf[level]]
            if not level.size:
                return depth
            level = np.unique(children[level])
        raise UnsupportedForm(f"a tree has more than {_MOST_LEVELS} levels, or it goes round in a circle")

    def _add(self, mode: str, feature: int, threshold: float, children: tuple[int, int], *, missing: bool) -> int:
        if mode not in _MODES:
            raise UnsupportedForm(f"mode {mode!r} is not known")
        self.modes.append(mode)
        self.features.append(feature)
        self.thresholds.append(threshold)
        self.children.append(children)
        self.missing.append(missing)
        return len(self.modes) - 1


def _leaves(context: FormContext, forest: _Forest) -> Value:
    """The number of the leaf that each row of input 0 reaches in each tree: ``[rows, trees]``."""
    x, rows, columns = first_rows(context, floats_of(context))
    features = np.array(forest.features, np.int64)
    if not forest.roots or (features.size and (features.min() < 0 or features.max() >= columns)):
        raise UnsupportedForm(f"{len(forest.roots)} trees with features up to {max(forest.features, default=0)} of {columns}")
    flat = reshape(context, x, (rows * columns,))
    base = context.const(np.arange(rows, dtype=np.int64)[:, None] * columns)
    children = context.const(np.array(forest.children, np.int64).reshape(-1))
    places: Value = context.const(np.array(forest.roots, np.int64)[None])
    for _ in range(forest.levels()):
        feature = _looked_up(context, features, places)
        value = context.emit("gather", flat, context.emit("add", base, feature), axis=0)
        right = _passes(context, forest, value, places)
        doubled = context.emit("mul", places, context.const(np.array(2, np.int64)))
        places = context.emit("gather", children, context.emit("add", doubled, cast_to(context, right, DType.INT64)), axis=0)
    return context.emit("expand", places, shape=(rows, len(forest.roots)))


def _passes(context: FormContext, forest: _Forest, value: Value, places: Value) -> Value:
    """Whether each value passes the test of its node."""
    threshold = _looked_up(context, np.array(forest.thresholds, value.type.dtype.numpy), places)
    modes = np.array(forest.modes)
    passes: Value | None = None
    for mode, op in _TESTS.items():
        if mode not in forest.modes:
            continue
        result = context.emit(op, value, threshold)
        passes = result if passes is None else context.emit("where", _looked_up(context, modes == mode, places), result, passes)
    missing = np.array(forest.missing)
    if passes is None:
        return context.const(np.array(False))
    if not missing.any():
        return passes
    return context.emit("or", passes, context.emit("and", context.emit("is_nan", value), _looked_up(context, missing, places)))


def _looked_up(context: FormContext, table: Array, places: Value) -> Value:
    """The table's elements at places; a table of equal elements is a number."""
    return context.emit("gather", context.const(table), places, axis=0)


def _aggregated(context: FormContext, leaves: Value, weights: Array, given: Array, kind: str) -> Value:
    """The weights ``[nodes, targets]`` of all trees' leaves put together: ``[rows, targets]``. ``given`` marks the weights that there are.

    A target to which no leaf gives anything is zero.
    """
    limits = np.finfo(weights.dtype)
    nothing = {"MIN": limits.max, "MAX": limits.min}.get(kind, weights.dtype.type(0))
    found = context.emit("gather", context.const(np.where(given, weights, nothing).astype(weights.dtype)), leaves, axis=0)
    total = reduce(context, found, {"MIN": "min", "MAX": "max"}.get(kind, "sum"), (1,), keepdims=False)
    if kind in ("MIN", "MAX") and not given.all():
        untouched = context.emit("equal", total, context.const(np.array(nothing)))
        total = context.emit("where", untouched, scalar_like(context, total, 0), total)
    trees = leaves.type.shape[1]
    return context.emit("div", total, scalar_like(context, total, float(trees))) if kind == "AVERAGE" and isinstance(trees, int) else total


def _chosen(names: Sequence[str], name: object, role: str) -> str:
    """One of names, by itself or by its number."""
    found = names[name] if isinstance(name, int) and 0 <= name < len(names) else name
    if found not in names:
        raise UnsupportedForm(f"{role} {name!r} is none of {', '.join(names)}")
    return str(found)


def _tree_ensemble(context: FormContext) -> Value:
    """Since version 5: branches and leaves are numbered apart; a tree whose branches are one leaf is that leaf."""
    attrs = context.attrs
    forest, splits = _Forest(), np.array(attrs["nodes_splits"])
    modes = [_chosen(_MODES, int(mode), "mode") for mode in np.array(attrs["nodes_modes"]).tolist()]
    count, weights = len(modes), np.array(attrs["leaf_weights"])
    missing = attrs.get("nodes_missing_value_tracks_true") or (0,) * count
    sides = [
        [int(number) + (count if leaf else 0) for number, leaf in zip(attrs[f"nodes_{side}nodeids"], attrs[f"nodes_{side}leafs"], strict=True)]
        for side in ("true", "false")
    ]
    rows = zip(modes, attrs["nodes_featureids"], splits.tolist(), *sides, missing, strict=True)
    for mode, feature, split, true, false, tracks in rows:
        forest.branch(mode, int(feature), float(split), true, false, missing=bool(tracks))
    for _ in weights:
        forest.leaf()
    members = iter(np.array(attrs.get("membership_values", ())).tolist())
    for number, mode in enumerate(modes):
        if mode == "BRANCH_MEMBER":
            values = []
            while not np.isnan(value := next(members, np.nan)):
                values.append(value)
            forest.members(number, values)
    for root in map(int, attrs["tree_roots"]):
        alone = sides[0][root] == sides[1][root] and sides[0][root] >= count
        forest.roots.append(sides[0][root] if alone else root)
    targets = int(attrs.get("n_targets", 1))
    table = np.zeros((len(forest.modes), targets), weights.dtype)
    given = np.zeros(table.shape, bool)
    places = (np.arange(len(weights)) + count, np.array(attrs["leaf_targetids"], np.int64))
    table[places], given[places] = weights, True
    kind = _chosen(_AGGREGATES, attrs.get("aggregate_function", 1), "aggregate_function")
    scores = _aggregated(context, _leaves(context, forest), table, given, kind)
    transform = _chosen(_TRANSFORMS, attrs.get("post_transform", 0), "post_transform")
    return cast_to(context, transformed(context, scores, transform), context.input(0).type.dtype)


def _numbers(context: FormContext, name: str) -> Array | None:
    """An attribute of floats, or, since version 3, of a tensor under the name with ``_as_tensor``."""
    tensor, plain = context.attrs.get(f"{name}_as_tensor"), context.attrs.get(name)
    if isinstance(tensor, np.ndarray):
        return tensor
    return np.array(plain, np.float32) if plain else None


def _named_forest(context: FormContext) -> tuple[_Forest, dict[tuple[int, int], int]]:
    """The trees of versions 1 and 3, whose nodes are named by their tree and a number in it; with the nodes by name."""
    attrs, forest = context.attrs, _Forest()
    names = list(zip(map(int, attrs["nodes_treeids"]), map(int, attrs["nodes_nodeids"]), strict=True))
    numbers = {name: number for number, name in enumerate(names)}
    thresholds = _numbers(context, "nodes_values")
    missing = attrs.get("nodes_missing_value_tracks_true") or (0,) * len(names)
    rows = zip(
        names,
        attrs["nodes_modes"],
        attrs["nodes_featureids"],
        (0.0,) * len(names) if thresholds is None else thresholds.tolist(),
        attrs["nodes_truenodeids"],
        attrs["nodes_falsenodeids"],
        missing,
        strict=True,
    )
    for name, mode, feature, threshold, true, false, tracks in rows:
        if mode == "LEAF":
            forest.leaf()
        else:
            true, false = (_number(numbers, name[0], node) for node in (true, false))
            forest.branch(str(mode), int(feature), float(threshold), true, false, missing=bool(tracks))
    first: dict[int, int] = {}
    for number, (tree, _) in enumerate(names):
        first.setdefault(tree, number)
    forest.roots = list(first.values())
    return forest, numbers


def _number(numbers: Mapping[tuple[int, int], int], tree: int, node: int) -> int:
    """The number of a node that another node or a weight names."""
    number = numbers.get((int(tree), int(node)))
    if number is None:
        raise UnsupportedForm(f"node {node} of tree {tree} does not exist")
    return number


def _named_weights(context: FormContext, role: str, numbers: Mapping[tuple[int, int], int], targets: int, dtype: DType) -> tuple[Array, Array]:
    """The weights ``[nodes, targets]`` that attributes ``{role}_treeids`` and so on give to leaves, and where there are some."""
    attrs, weights = context.attrs, _numbers(context, f"{role}_weights")
    nodes = [_number(numbers, tree, node) for tree, node in zip(attrs[f"{role}_treeids"], attrs[f"{role}_nodeids"], strict=True)]
    places = (np.array(nodes, np.int64), np.array(attrs[f"{role}_ids"], np.int64))
    table, given = np.zeros((len(numbers), targets), dtype.numpy), np.zeros((len(numbers), targets), bool)
    np.add.at(table, places, np.zeros(len(nodes)) if weights is None else weights)
    given[places] = True
    return table, given


def _based(context: FormContext, scores: Value) -> Value:
    base = _numbers(context, "base_values")
    return scores if base is None else context.emit("add", scores, context.const(base.astype(scores.type.dtype.numpy)))


def _tree_ensemble_regressor(context: FormContext) -> Value:
    forest, numbers = _named_forest(context)
    leaves = _leaves(context, forest)
    dtype = DType.FLOAT64 if context.input(0).type.dtype is DType.FLOAT64 else DType.FLOAT32
    table, given = _named_weights(context, "target", numbers, int(context.attrs.get("n_targets", 1)), dtype)
    kind = _chosen(_AGGREGATES, str(context.attrs.get("aggregate_function", "SUM")), "aggregate_function")
    scores = _based(context, _aggregated(context, leaves, table, given, kind))
    return cast_to(context, transformed(context, scores, str(context.attrs.get("post_transform", "NONE"))), DType.FLOAT32)


def _tree_ensemble_classifier(context: FormContext) -> Sequence[Value]:
    """Outputs: labels and scores. Where all weights are those of the first of two classes, they are one score, for the second."""
    labels, kind = labels_of(context, "classlabels_int64s"), str(context.attrs.get("post_transform", "NONE"))
    forest, numbers = _named_forest(context)
    leaves = _leaves(context, forest)
    dtype = DType.FLOAT64 if context.input(0).type.dtype is DType.FLOAT64 else DType.FLOAT32
    ids = {int(number) for number in context.attrs["class_ids"]}
    if len(labels) < 2 or ids - set(range(len(labels))):
        raise UnsupportedForm(f"weights of classes {sorted(ids)} with {len(labels)} labels; at least two labels are needed")
    table, given = _named_weights(context, "class", numbers, len(labels), dtype)
    base = _numbers(context, "base_values")
    if len(labels) > 2 or ids != {0} or (base is not None and base.size > 1):
        scores = _based(context, _aggregated(context, leaves, table, given, "SUM"))
        return best_label(context, scores, labels), cast_to(context, transformed(context, scores, kind), DType.FLOAT32)
    score = _based(context, _aggregated(context, leaves, table[:, :1], given[:, :1], "SUM"))
    if kind not in ("NONE", "LOGISTIC"):
        raise UnsupportedForm(f"post_transform {kind} of one score for two classes, of which implementations make different results")
    probability = bool((table >= 0).all())
    chosen = two_labels(context, score, 0.5 if probability else 0.0, labels)
    opposite = context.emit("neg", score)
    if kind == "NONE" and probability:
        opposite = context.emit("add", opposite, scalar_like(context, score, 1))
    both = context.emit("concat", opposite, score, axis=1)
    return chosen, cast_to(context, transformed(context, both, kind), DType.FLOAT32)


# Two trees on four features: a root with two leaves, and one of three branches.
_NAMED: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 0, 1, 2, 3, 4, 5, 6],
    "nodes_featureids": [1, 0, 0, 0, 3, 2, 0, 0, 0, 0],
    "nodes_values": [0.5, 0.0, 0.0, -0.25, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0, 1, 3, 5, 0, 0, 0, 0],
    "nodes_falsenodeids": [2, 0, 0, 2, 4, 6, 0, 0, 0, 0],
}
_LEAVES = {"treeids": [0, 0, 1, 1, 1, 1], "nodeids": [1, 2, 3, 4, 5, 6]}
_X = (np.sin(np.arange(32) * 1.3) * 2).astype(np.float32).reshape(8, 4)
_X[2, 1], _X[5, 0], _X[7] = np.nan, -0.25, 0.0


def _tree_modes(first: str, *others: str) -> list[str]:
    return [first, "LEAF", "LEAF", *others, "LEAF", "LEAF", "LEAF", "LEAF"]


def _regressor(x: Array, modes: list[str], **attrs: Any) -> Sample:
    weights: dict[str, Any] = {f"target_{key}": value for key, value in _LEAVES.items()}
    weights |= {"target_ids": [0] * 6, "target_weights": [1.0, -2.0, 0.5, 3.0, -0.75, 0.25], "n_targets": 1}
    return sample("TreeEnsembleRegressor", x, **{**_NAMED, "nodes_modes": modes, **weights, **attrs})


def _classifier(ids: list[int], weights: list[float], labels: list[int], **attrs: Any) -> Sample:
    leaves: dict[str, Any] = {f"class_{key}": value for key, value in _LEAVES.items()}
    leaves |= {"class_ids": ids, "class_weights": weights, "classlabels_int64s": labels}
    modes = _tree_modes("BRANCH_LEQ", *("BRANCH_LEQ",) * 3)
    return sample("TreeEnsembleClassifier", _X, outputs=2, **{**_NAMED, "nodes_modes": modes, **leaves, **attrs})


def _ensemble(modes: list[int], **attrs: Any) -> Sample:
    """Three branches of one tree, and a tree that is a leaf."""
    given: dict[str, Any] = {
        "tree_roots": [0, 3],
        "nodes_featureids": [0, 2, 3, 0],
        "nodes_splits": np.array([0.5, -0.25, 1.0, 0.0], np.float32),
        "nodes_modes": np.array(modes, np.uint8),
        "nodes_truenodeids": [1, 0, 2, 1],
        "nodes_trueleafs": [0, 1, 1, 1],
        "nodes_falsenodeids": [2, 1, 3, 1],
        "nodes_falseleafs": [0, 1, 1, 1],
        "leaf_targetids": [0, 1, 0, 1],
        "leaf_weights": np.array([1.5, -2.0, 0.25, 4.0], np.float32),
        "n_targets": 2,
    }
    return sample("TreeEnsemble", np.round(np.nan_to_num(_X) * 2), opset=5, **{**given, **attrs})


_MIXED = _tree_modes("BRANCH_GT", "BRANCH_LT", "BRANCH_GTE", "BRANCH_NEQ")
_SHARES = [0.1, 0.4, 0.2, 0.3, 0.25, 0.05]

extend(
    Gather,
    forms=(
        OnnxForm("TreeEnsemble", _tree_ensemble, since=5, domain=MACHINE_LEARNING),
        OnnxForm("TreeEnsembleRegressor", _tree_ensemble_regressor, domain=MACHINE_LEARNING),
        OnnxForm("TreeEnsembleClassifier", _tree_ensemble_classifier, domain=MACHINE_LEARNING),
    ),
    samples=(
        _regressor(_X, _tree_modes("BRANCH_LEQ", "BRANCH_LEQ", "BRANCH_LEQ", "BRANCH_LEQ"), base_values=[0.125]),
        _regressor(_X, _tree_modes("BRANCH_LT", "BRANCH_LT", "BRANCH_LT", "BRANCH_EQ"), nodes_missing_value_tracks_true=[1] * 10),
        _regressor(np.nan_to_num(_X), _MIXED, aggregate_function="MIN"),
        _regressor(np.nan_to_num(_X), _MIXED, aggregate_function="AVERAGE", target_ids=[0, 1, 1, 0, 2, 0], n_targets=3),
        _classifier([0, 1, 2, 1, 0, 2], _SHARES, [5, 3, 9]),
        _classifier([0, 1, 2, 1, 0, 2], _SHARES, [5, 3, 9], post_transform="SOFTMAX", base_values=[0.5, 0.25, 1.0]),
        _classifier([0] * 6, _SHARES, [4, 8]),
        _classifier([0] * 6, _SHARES, [4, 8], post_transform="LOGISTIC", base_values=[0.25]),
        _classifier([0] * 6, [0.5, -1.0, 0.25, 0.75, -0.5, 0.1], [4, 8], post_transform="LOGISTIC"),
        _ensemble([0, 1, 2, 0]),
        _ensemble([3, 4, 5, 0], aggregate_function=3, post_transform=0),
        _ensemble([6, 0, 6, 0], membership_values=np.array([0.0, 3.0, np.nan, -1.0, np.nan], np.float32), aggregate_function=0),
    ),
)
