"""Networks: one residual trunk, the tables of its architectures, and their weights files."""
