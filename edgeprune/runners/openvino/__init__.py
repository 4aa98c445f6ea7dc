"""OpenVINO itself as a target."""
