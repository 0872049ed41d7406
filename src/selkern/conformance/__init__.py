"""The rules of the paper, held against what selective-kernel code computes in a traced forward pass."""
