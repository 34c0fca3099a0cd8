"""The onnx package's own test cases, run on the compiler."""
