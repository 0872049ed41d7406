"""The selective-kernel operator: `reference` is the paper in plain PyTorch, `select` the fast path."""
