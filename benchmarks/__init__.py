"""Benchmarks: `run.py` on the CPU, `gpu.py` on a GPU; never in the wheel."""
