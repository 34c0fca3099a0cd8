"""Every model of the zoo, compiled and compared with ONNX Runtime: ``python tests/zoo_sweep.py [MODEL …]``.

The difference is relative to an output's scale. Models that round activations to 8 bits on the way may differ by as much as ONNX Runtime
does from itself with and without its optimisations, or by a step: a float sum in another order turns a rounding over (docs/quantization.md).
Exits with status 1 where a model does not compile or is further off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from zoo_models import FOLDER, load, relative_difference

import tensorsmith as ts

BOUND = 5e-5
TERNARY = 1e-3
"""For models whose weights are ternary: their sums cancel almost whole."""
HALF = 2**-9
"""For models in float16, four units in the last place of the largest output."""
PACKED = 2 / 127
"""For products with packed weights that round their activations to steps of 1/127 of a block's greatest."""
_TERNARY_NAMES = ("ternary", "bitnet")
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QLinearConv", "QLinearMatMul")


def main(names: list[str]) -> int:
    """Compare each model and print a line for it; how many failed."""
    sys.path.insert(0, str(FOLDER))
    import zoo

    failed = 0
    for name in names or zoo.names():
        start = time.perf_counter()
        try:
            worst, bound = compare(name)
        except ts.TensorsmithError as error:
            print(f"{name:32} FAILED {str(error).splitlines()[0]}", flush=True)
            failed += 1
            continue
        failed += worst > bound
        verdict = "" if worst <= bound else "  TOO FAR OFF"
        print(f"{name:32} {worst:9.2e} of the scale, bound {bound:.1e}, {time.perf_counter() - start:5.1f} s{verdict}", flush=True)
    print(f"{failed} failed")
    return failed


def compare(name: str) -> tuple[float, float]:
    """The worst difference of any output from ONNX Runtime's, and the bound it is held to. Raises UserError where the model does not compile."""
    model, feeds = load(name)
    got = ts.compile(model, threads=2, cache=False).run(feeds)
    want = reference(model, feeds, optimized=True)
    bounds = [BOUND]
    bounds += [TERNARY] if any(part in name for part in _TERNARY_NAMES) else []
    bounds += [HALF] if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer) else []
    bounds += [PACKED] if any(node.op_type == "MatMulNBits" for node in model.graph.node) else []
    bound = max(bounds)
    if any(node.op_type in _ROUNDING for node in model.graph.node):
        plain = reference(model, feeds, optimized=False)
        bound = max([bound, *(1.01 * relative_difference(plain[key], want[key]) for key in want)])
        return max(min(relative_difference(got[key], found[key]) for found in (want, plain)) for key in want), bound
    return max(relative_difference(got[key], want[key]) for key in want), bound


def reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, optimized: bool) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
