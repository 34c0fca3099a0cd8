"""Tensorsmith: ONNX models to fast native code.

``module = tensorsmith.compile("model.onnx")``, then ``outputs = module.run({"input": array})``.
"""

from compiler.driver import compile  # noqa: A004 # the public name says what it does
from compiler.errors import ArtifactError, InternalError, TensorsmithError, UnsupportedError, UserError
from compiler.target import Target
from runtime.module import Module, load

__all__ = [
    "ArtifactError",
    "InternalError",
    "Module",
    "Target",
    "TensorsmithError",
    "UnsupportedError",
    "UserError",
    "compile",
    "load",
]
