"""The Triton backend: kernels, one pass a file, and their launches. Its modules import triton."""
