"""`edgeprune convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import EXPORT, Integer, OptionalNumber, OptionalText, Switch, flags, parse_open_size
from edgeprune.cli.tables import facts
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.deployment.converting import ConvertedFile
    from edgeprune.deployment.quantizing import Calibration
    from edgeprune.precision.formats import PrecisionRecord


@Parameter(name="*", group=EXPORT)
@flags
class Int8Flags:
    """In which number format to write."""

    precision: Annotated[Literal["fp32", "fp16", "int8"], Parameter(name="--precision")] = "fp32"
    """int8: weights with a scale a filter, activations with one a tensor; inputs and outputs stay float32. fp16: for
    openvino, and the values of every layer on --data are held to what FP16 can hold."""
    data: OptionalText = ""
    """Calibrates INT8 and tells what it costs: digits, imagefolder:DIR, cifar10:DIR, path/to/file.py:factory (needs
    torch), or a .npy file with inputs (N,C,H,W) as the network takes them."""
    calibration_images: Integer = 256
    """Images of --data at most that calibrate INT8."""
    weight_bits: Literal["auto", "7", "8"] = "auto"
    """Of INT8's weights: 7 for x86 without VNNI, which cuts sums of products of 8 bits; auto looks at this machine."""
    max_drop: OptionalNumber = None
    """Points of top-1 that INT8 may cost on --data: the layers that cost most stay in FP32 until it costs no more."""

    def calibration(self) -> Calibration:
        from edgeprune.deployment.quantizing import Calibration

        if self.max_drop is not None and self.precision != "int8":
            raise InputError("--max-drop says what INT8 may cost", remedy="pass --precision int8, or leave it out")
        return Calibration(self.data, self.calibration_images, max_drop=self.max_drop)


def convert(
    model: Path,
    /,
    *,
    to: Annotated[str, Parameter(group=EXPORT)],
    input_size: Annotated[OptionalText, Parameter(group=EXPORT)] = "",
    io_layout: Annotated[Literal["auto", "nhwc", "nchw"], Parameter(group=EXPORT)] = "auto",
    dense: Annotated[Switch, Parameter(group=EXPORT)] = False,
    int8: Int8Flags = Int8Flags(),
    out: Annotated[Path, Parameter(alias="-o", group=EXPORT)],
    common: Common = Common(),
) -> None:
    """Write any ONNX CNN, or a bundle's network, for another runtime, and hold it to what ONNX Runtime computes.

    Needs no torch. A convolution in groups stays one operation. What the format has no operation for is named, with its
    node.

    **Examples**

    - `edgeprune convert out/ --to tflite -o model.tflite`
    - `edgeprune convert out/ --to tflite --dense -o dense.tflite`
    - `edgeprune convert out/ --to tflite --precision int8 --data imagefolder:DIR -o model.int8.tflite`
    - `edgeprune convert out/ --to openvino --precision int8 --data inputs.npy -o model.int8.xml`
    - `edgeprune convert out/ --to onnx --precision int8 --data imagefolder:DIR --max-drop 0.5 -o model.int8.onnx`
    - `edgeprune convert yolo.onnx --to tflite --input-size 640,640 --io-layout nchw -o yolo.tflite`
    - `edgeprune convert out/ --to ncnn -o model.param`

    Parameters
    ----------
    model
        An ONNX file, or a bundle with one.
    to
        Format: tflite (LiteRT, TensorFlow Lite), ncnn (a .param file and a .bin beside it), openvino (its IR: an .xml
        file and a .bin beside it), or, for INT8 alone, onnx.
    input_size
        Sizes of the input's last axes, such as H,W or C,H,W, for an ONNX file that leaves more open than the batch,
        which becomes 1.
    io_layout
        Order of the axes of images that the file takes and gives: by default what the runtime computes in, nhwc for
        LiteRT; nchw, as in ONNX, costs a transposition each there.
    dense
        The network that the bundle was pruned from.
    out
        The file to write; one that is there is replaced.
    """
    from edgeprune.exporters.conversions import ConvertOptions, conversion_named
    from edgeprune.pipeline import convert as steps

    layout = conversion_named(to, int8.precision).layouts[0] if io_layout == "auto" else io_layout
    options = ConvertOptions(
        layout, parse_open_size(input_size), precision=int8.precision, weight_bits=int8.weight_bits
    )
    result = steps.convert(model, to, out, options, dense=dense, calibration=int8.calibration())
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
    if (compared := result.compared) is not None:
        bits = f", weights of {compared.weight_bits} bits" if compared.weight_bits else ""
        pairs += [("precision", compared.precision + bits), *_accuracy(compared)]
    facts(result.path, [*pairs, *(("note", note) for note in result.notes)])


def _accuracy(compared: PrecisionRecord) -> list[tuple[str, str]]:
    found, layers = [], len(compared.formats)
    if compared.top1 is not None and compared.top1_fp32 is not None:
        drop = compared.top1 - compared.top1_fp32
        words = f"{compared.top1_fp32:.2f} % in FP32, {compared.top1:.2f} % ({drop:+.2f} points)"
        found.append(("top-1", f"{words} of {compared.n} images"))
    elif compared.agreement is not None:
        found.append(("same class as FP32", f"{compared.agreement:.1f} % of {compared.n} images"))
    if layers and compared.precision == "int8":
        found.append(("layers in it", f"{layers - len(compared.other_layers)} of {layers}, told by the runtime"))
    return found
