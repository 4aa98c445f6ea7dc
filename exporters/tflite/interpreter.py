"""Running a .tflite file as the ONNX network that it was written from: same names, same shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgeprune.errors import InputError, first_line
from edgeprune.exporters.tflite.record import file_record
from edgeprune.io.arrays import Array, Feeds


def open_interpreter(data: bytes, threads: int, *, where: object) -> Any:
    """LiteRT's interpreter with its XNNPACK delegate, its memory laid out; InputError where it refuses the file."""
    try:
        interpreter = Interpreter(model_content=data, num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot load it: {first_line(error)}", where=where) from error
    return interpreter


def run_file(path: Path, feeds: Feeds) -> dict[str, Array]:
    """The outputs of a file that edgeprune wrote, by the ONNX file's names and in its shapes, on one thread.

    InputError where the file is none, or LiteRT refuses it.
    """
    data = path.read_bytes()
    record = file_record(data, where=path)
    interpreter = open_interpreter(data, 1, where=path)
    for port, place in zip(record.inputs, interpreter.get_input_details(), strict=True):
        lying = np.ascontiguousarray(np.transpose(feeds[port.name], port.order))
        interpreter.set_tensor(place["index"], lying)
    interpreter.invoke()
    outputs = {}
    for port, place in zip(record.outputs, interpreter.get_output_details(), strict=True):
        lying = interpreter.get_tensor(place["index"])
        outputs[port.name] = np.ascontiguousarray(np.transpose(lying, np.argsort(port.order)))
    return outputs
