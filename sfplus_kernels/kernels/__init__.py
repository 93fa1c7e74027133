"""Triton kernels, one pass per file. Importing a module of this folder imports triton."""
