"""The proof of docs/guarantees.md as programs: each prints one figure, `python -m reliability.NAME --help` tells how.

Their short forms are in tests/reliability/ and run with every test of the project.
"""
