"""LiteRT (TensorFlow Lite) with its XNNPACK delegate, on the processor."""
