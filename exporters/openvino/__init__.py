"""ONNX -> OpenVINO's intermediate representation (IR), by OpenVINO: a network in XML and its weights beside it."""
