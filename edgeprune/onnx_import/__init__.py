"""An ONNX file as a torch network, whose layers can be pruned and trained."""
