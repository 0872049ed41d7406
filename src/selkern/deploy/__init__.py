"""Trained networks made ready to be used: folded for inference."""
