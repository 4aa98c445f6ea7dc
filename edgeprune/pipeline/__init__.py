"""The order of the steps, one module a verb of the command line: no other module knows it.

checkpoint -> model -> traced graph -> plan -> rewritten model -> (fine-tuned) -> folded model -> ONNX -> parity gate
-> lowered ONNX -> parity gate -> per-device subgraphs -> measurements -> report

What needs torch is imported inside the functions that need it: the other verbs also run on the device, where there is
none.
"""
