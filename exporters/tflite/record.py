"""What a .tflite file says of itself, beside what LiteRT reads: the ONNX network's names, shapes and nodes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeprune.errors import InputError

RECORD = "edgeprune"
"""Name of the file's metadata that holds it."""


class Port(msgspec.Struct, frozen=True):
    """An input or output."""

    name: str
    """As in the ONNX file."""
    shape: tuple[int, ...]
    """As in the ONNX file: (N, C, H, W) of images."""
    order: tuple[int, ...]
    """Which of these axes each axis of the file's tensor is: (0, 2, 3, 1) where that is (N, H, W, C)."""


class FileRecord(msgspec.Struct, frozen=True):
    """Inputs and outputs in the file's order, and where its operators come from."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[str, ...]
    """For each operator, in the order in which they run, the ONNX node that it is for."""


def path_for_batch(path: Path, batch: int) -> Path:
    """Where a network's file for this batch size lies, beside the one for single images."""
    return path.with_name(f"{path.stem}.batch-{batch}{path.suffix}")


def encoded(record: FileRecord) -> bytes:
    return msgspec.json.encode(record)


def read_metadata(data: bytes) -> dict[str, bytes]:
    """A .tflite file's metadata by name. An exception of many kinds for what is no such file."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data)
    entries = [model.Metadata(place) for place in range(model.MetadataLength())]
    return {str(entry.Name(), "utf-8"): bytes(model.Buffers(entry.Buffer()).DataAsNumpy()) for entry in entries}


def file_record(data: bytes, *, where: object = "") -> FileRecord:
    """What edgeprune wrote into a .tflite file of its own; InputError where there is nothing of the kind."""
    try:
        return msgspec.json.decode(read_metadata(data)[RECORD], type=FileRecord)
    except Exception as error:  # whatever reading a damaged flatbuffer raises
        raise InputError(
            "is no .tflite file that edgeprune wrote",
            where=Path(str(where)),
            expected="one that `edgeprune convert` wrote",
            remedy="name the ONNX file instead",
        ) from error
