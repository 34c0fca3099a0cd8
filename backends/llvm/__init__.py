"""Loop IR to textual LLVM to native code through llvmlite."""
