"""ONNX -> ncnn: a text file with the layers, and a file with their weights."""
