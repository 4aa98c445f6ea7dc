"""From ONNX to OpenVINO's intermediate representation (IR): a network in XML and its weights beside it."""
