"""Layers to put into a network: SelectiveKernel, SKFusion, the article's SKAttention and MLPAttention."""
