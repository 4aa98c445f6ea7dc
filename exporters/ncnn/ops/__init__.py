"""What each ONNX operation is in ncnn: one function an operation, from a node to layers."""
