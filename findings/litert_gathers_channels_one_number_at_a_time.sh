#!/usr/bin/env bash
# LiteRT 2.3.0 (CPU): a GATHER along the last axis, which is where a .tflite file has its channels, copies number by number,
# and is no operator of the XNNPACK delegate. The same permutation written as TRANSPOSE, GATHER of rows, TRANSPOSE moves
# every number three times, and is several times faster. A guess would be that one operator beats three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ai-edge-litert==2.3.0 numpy==2.4.6 flatbuffers==25.12.19
"$folder/venv/bin/python" - <<'PY' 2> >(grep -v '^INFO' >&2)
import time
from importlib import metadata

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as s
from ai_edge_litert.interpreter import Interpreter

HEIGHT, CHANNELS, RUNS = 56, 64, 101
order = np.random.default_rng(0).permutation(CHANNELS).astype(np.int32)


def file(steps):
    """A .tflite file of one image and these steps on it: (operator, its constant, its options, the result's shape)."""
    buffers, tensors, operators, codes = [s.BufferT()], [], [], []

    def tensor(name, shape, values=None):
        if values is not None:
            buffers.append(s.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        kind = s.TensorType.FLOAT32 if values is None else s.TensorType.INT32
        buffer = 0 if values is None else len(buffers) - 1
        tensors.append(s.TensorT(name=name, shape=list(shape), type=kind, buffer=buffer))
        return len(tensors) - 1

    last = first = tensor("x", (1, HEIGHT, HEIGHT, CHANNELS))
    for number, (operator, constant, options, shape) in enumerate(steps):
        held, result = tensor(f"c{number}", constant.shape, constant), tensor(f"y{number}", shape)
        code = getattr(s.BuiltinOperator, operator)
        codes.append(s.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1))
        step = s.OperatorT(opcodeIndex=number, inputs=[last, held], outputs=[result])
        if options:
            step.builtinOptionsType, step.builtinOptions = s.BuiltinOptions.GatherOptions, s.GatherOptionsT(**options)
        operators.append(step)
        last = result
    graph = s.SubGraphT(tensors=tensors, inputs=[first], outputs=[last], operators=operators)
    builder = flatbuffers.Builder(1024)
    builder.Finish(s.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers).Pack(builder), b"TFL3")
    return bytes(builder.Output())


image, turned = (1, HEIGHT, HEIGHT, CHANNELS), (CHANNELS, 1, HEIGHT, HEIGHT)
files = {
    "one GATHER of channels": file([("GATHER", order, {"axis": 3}, image)]),
    "TRANSPOSE, GATHER of rows, TRANSPOSE": file(
        [
            ("TRANSPOSE", np.array([3, 0, 1, 2], np.int32), None, turned),
            ("GATHER", order, {"axis": 0}, turned),
            ("TRANSPOSE", np.array([1, 2, 3, 0], np.int32), None, image),
        ]
    ),
}
x = np.random.default_rng(1).standard_normal(image).astype(np.float32)
loaded, times = {}, {name: [] for name in files}
for name, data in files.items():
    loaded[name] = Interpreter(model_content=data, num_threads=1)
    loaded[name].allocate_tensors()
    loaded[name].set_tensor(loaded[name].get_input_details()[0]["index"], x)
for _ in range(RUNS):
    for name, interpreter in loaded.items():
        start = time.perf_counter()
        interpreter.invoke()
        times[name].append(time.perf_counter() - start)
print(f"LiteRT {metadata.version('ai-edge-litert')}, {CHANNELS} channels of {HEIGHT}x{HEIGHT}, one thread")
medians = {name: sorted(taken)[RUNS // 2] * 1e3 for name, taken in times.items()}
for name, interpreter in loaded.items():
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert np.array_equal(found, x[..., order]), name
    print(f"{name}: {medians[name]:.3f} ms")
one, three = medians.values()
assert one > 1.5 * three, "one operator is no longer slower than three"
print(f"one operator takes {one / three:.1f} times what three take")
PY
