"""Selective kernels in a network that is there already: it computes what it did, until training moves it."""
