"""`edgeprune convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import EXPORT, OptionalText, Switch, parse_open_size
from edgeprune.cli.tables import facts

if TYPE_CHECKING:
    from edgeprune.deployment.converting import ConvertedFile


def convert(
    model: Path,
    /,
    *,
    to: Annotated[str, Parameter(group=EXPORT)],
    input_size: Annotated[OptionalText, Parameter(group=EXPORT)] = "",
    io_layout: Annotated[Literal["nhwc", "nchw"], Parameter(group=EXPORT)] = "nhwc",
    dense: Annotated[Switch, Parameter(group=EXPORT)] = False,
    out: Annotated[Path, Parameter(alias="-o", group=EXPORT)],
    common: Common = Common(),
) -> None:
    """Write any ONNX CNN, or a bundle's network, for another runtime, and hold it to what ONNX Runtime computes.

    Needs no torch. A convolution in groups stays one operation. What the format has no operation for is named, with its
    node.

    **Examples**

    - `edgeprune convert out/ --to tflite -o model.tflite`
    - `edgeprune convert out/ --to tflite --dense -o dense.tflite`
    - `edgeprune convert yolo.onnx --to tflite --input-size 640,640 --io-layout nchw -o yolo.tflite`
    - `edgeprune convert out/ --to ncnn -o model.param`

    Parameters
    ----------
    model
        An ONNX file, or a bundle with one.
    to
        Format: tflite (LiteRT, TensorFlow Lite), ncnn (a .param file and a .bin beside it), openvino (an .xml file
        and a .bin beside it).
    input_size
        Sizes of the input's last axes, such as H,W or C,H,W, for an ONNX file that leaves more open than the batch,
        which becomes 1.
    io_layout
        Order of the axes of images that the file takes and gives: nhwc, which LiteRT computes in, or nchw as in ONNX,
        which costs a transposition each.
    dense
        The network that the bundle was pruned from.
    out
        The file to write; one that is there is replaced.
    """
    from edgeprune.exporters.conversions import ConvertOptions
    from edgeprune.pipeline import convert as steps

    options = ConvertOptions(io_layout, parse_open_size(input_size))
    result = steps.convert(model, to, out, options, dense=dense)
    show(result)
    common.write(result)


def show(result: ConvertedFile) -> None:
    """What was written, and how near it is."""
    layout = f", inputs and outputs in {result.io_layout.upper()}" if result.io_layout else ""
    pairs = [
        ("format", f"{result.format}{layout}"),
        ("size", f"{result.bytes:,} bytes"),
        ("difference from ONNX Runtime", f"{result.max_rel:.1e} of the outputs' range"),
    ]
    facts(result.path, [*pairs, *(("note", note) for note in result.notes)])
