"""ONNX files: load and save them, ask about their graphs, count their multiply-adds."""
