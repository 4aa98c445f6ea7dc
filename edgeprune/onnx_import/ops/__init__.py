"""The operations of ONNX that can be written in torch: one entry each, in `table.py`."""
