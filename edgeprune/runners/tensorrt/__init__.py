"""TensorRT 10 and 11 themselves as a target."""
