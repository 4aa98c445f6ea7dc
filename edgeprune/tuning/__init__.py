"""Measure in which form each layer runs fastest, and remember it."""
