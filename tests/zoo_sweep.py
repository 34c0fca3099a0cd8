"""Every model of the zoo, compiled and compared with ONNX Runtime: ``python tests/zoo_sweep.py [MODEL …]``.

The difference is relative to an output's scale. Models that are quantised throughout must be equal, bit for bit, to ONNX Runtime with every
product on its integer kernels; how many steps they are from it as it runs them by itself is printed beside. Products with packed weights round
their activations, and how far ONNX Runtime is from itself is printed. docs/quantization.md has the reasons.
Exits with status 1 where a model does not compile or is further off.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnx
from quantized_models import Arrays, on_integers, output_step, runtime_outputs
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


def main(names: list[str]) -> int:
    """Compare each model and print a line for it; how many failed."""
    sys.path.insert(0, str(FOLDER))
    import zoo

    failed = 0
    for name in names or zoo.names():
        start = time.perf_counter()
        try:
            worst, bound, remark = compare(name)
        except ts.TensorsmithError as error:
            print(f"{name:32} FAILED {str(error).splitlines()[0]}", flush=True)
            failed += 1
            continue
        failed += worst > bound
        verdict = remark if worst <= bound else f"{remark}  TOO FAR OFF"
        print(f"{name:32} {worst:9.2e} of the scale, bound {bound:.1e}, {time.perf_counter() - start:5.1f} s{verdict}", flush=True)
    print(f"{failed} failed")
    return failed


def compare(name: str) -> tuple[float, float, str]:
    """The worst difference of any output from ONNX Runtime's, the bound it is held to, and a remark.

    Raises UserError where the model does not compile.
    """
    model, feeds = load(name)
    got = ts.compile(model, threads=2, cache=False).run(feeds)
    kinds = {node.op_type for node in model.graph.node}
    if "QuantizeLinear" in kinds:
        off = {level: _steps(model, got, runtime_outputs(model, feeds, level)) for level in ("NONE", "ALL")}
        remark = f"  (steps from it as given: {off['NONE']:.0f}, optimised: {off['ALL']:.0f})"
        return _worst(got, runtime_outputs(on_integers(model), feeds, int8=True)), 0, remark
    if "MatMulNBits" in kinds:
        want, basic = (runtime_outputs(model, feeds, level) for level in ("ALL", "BASIC"))
        return _worst(got, want), PACKED, f"  (it is {_worst(basic, want):.2e} off with basic optimisations)"
    bounds = [BOUND]
    bounds += [TERNARY] if any(part in name for part in _TERNARY_NAMES) else []
    bounds += [HALF] if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer) else []
    return _worst(got, runtime_outputs(model, feeds)), max(bounds), ""


def _worst(got: Arrays, want: Arrays) -> float:
    """The largest difference of any output, relative to its scale."""
    return max(relative_difference(got[key], want[key]) for key in want)


def _steps(model: onnx.ModelProto, got: Arrays, want: Arrays) -> float:
    """The largest difference of any output, in steps of its quantisation."""
    return max(float(np.abs(got[key] - want[key]).max(initial=0)) / output_step(model, key) for key in want)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
