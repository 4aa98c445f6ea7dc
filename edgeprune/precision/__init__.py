"""Number formats other than FP32: what they may cost, and models converted to them."""
