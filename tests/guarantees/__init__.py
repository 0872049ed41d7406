"""The promises of docs/guarantees.md, each kept by a test_*.py here; the other files do the damage."""
