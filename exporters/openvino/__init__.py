"""ONNX -> OpenVINO's own files (IR), by OpenVINO."""
