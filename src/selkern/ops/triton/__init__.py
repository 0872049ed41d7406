"""Kernels in Triton, which only the files in this folder import: everything else works without it."""
