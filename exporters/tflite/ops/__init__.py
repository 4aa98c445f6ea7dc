"""ONNX operations in LiteRT's: one table, one function an operation, by subject."""
