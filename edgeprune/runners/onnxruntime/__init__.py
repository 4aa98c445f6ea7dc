"""ONNX Runtime as a target, with every provider that it has."""
