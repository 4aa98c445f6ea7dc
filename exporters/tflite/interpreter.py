"""LiteRT's interpreter: opened without its chatter, and fed as the ONNX network that a file was written from."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgeprune.errors import InputError, first_line
from edgeprune.exporters.tflite.record import FileRecord, file_record
from edgeprune.io.arrays import Array, Feeds

_CHATTER = (b"INFO: ",)
"""Beginnings of lines that LiteRT writes to standard error each time."""


def open_interpreter(data: bytes, threads: int, *, where: object) -> Any:
    """LiteRT's interpreter with its XNNPACK delegate, its memory laid out; InputError where it refuses the file."""
    try:
        with without_chatter():
            interpreter = Interpreter(model_content=data, num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot load it: {first_line(error)}", where=where) from error
    return interpreter


def feed(interpreter: Any, record: FileRecord, feeds: Feeds) -> None:
    """Copy inputs into the interpreter, by the ONNX file's names and in its shapes."""
    for port, place in zip(record.inputs, interpreter.get_input_details(), strict=True):
        interpreter.set_tensor(place["index"], np.ascontiguousarray(np.transpose(feeds[port.name], port.order)))


def fetch(interpreter: Any, record: FileRecord) -> dict[str, Array]:
    """Copies of the outputs, by the ONNX file's names and in its shapes."""
    outputs = {}
    for port, place in zip(record.outputs, interpreter.get_output_details(), strict=True):
        lying = interpreter.get_tensor(place["index"])
        outputs[port.name] = np.ascontiguousarray(np.transpose(lying, np.argsort(port.order)))
    return outputs


def invoke(interpreter: Any, *, where: object = "LiteRT") -> None:
    """One run; InputError, in LiteRT's words, where it fails."""
    try:
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot run it: {first_line(error)}", where=where) from error


def run_file(path: Path, feeds: Feeds) -> dict[str, Array]:
    """The outputs of a file that edgeprune wrote, by the ONNX file's names and in its shapes, on one thread.

    InputError where the file is none, or LiteRT refuses it.
    """
    return next(run_file_on(path, [feeds]))


def run_file_on(path: Path, several: Iterable[Feeds]) -> Iterator[dict[str, Array]]:
    """As `run_file`, for one inputs after the other."""
    data = path.read_bytes()
    record = file_record(data, where=path)
    interpreter = open_interpreter(data, 1, where=path)
    for feeds in several:
        feed(interpreter, record, feeds)
        invoke(interpreter, where=path)
        yield fetch(interpreter, record)


@contextmanager
def without_chatter() -> Iterator[None]:
    """LiteRT's C++ writes to the process's standard error: what is no news is left out, all else comes through."""
    sys.stderr.flush()
    try:
        before = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as told:
        try:
            os.dup2(told.fileno(), 2)
            yield
        finally:
            os.dup2(before, 2)
            told.seek(0)
            news = [line for line in told.read().splitlines(keepends=True) if not line.startswith(_CHATTER)]
            os.write(before, b"".join(news))
            os.close(before)
