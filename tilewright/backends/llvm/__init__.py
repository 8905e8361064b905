"""Code generation with LLVM: from loops to IR, objects, libraries in memory and on disk."""
