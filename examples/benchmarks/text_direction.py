"""A trained network that nobody here made: which way up is a line of text? Pruned without labels.

python examples/benchmarks/text_direction.py ch_ppocr_mobile_v2.0_cls_infer.onnx -o runs/text_direction
    [--methods fpgm,sfp,gkp-cal] [--budgets 0.8,0.6] [--align auto] [--heal none,auto] [--lines 1000]

The network is the classifier of text direction in the wheel of rapidocr-onnxruntime 1.4.4
(rapidocr_onnxruntime/models/; unzip the wheel, nothing of it is run). It is imported from its ONNX file and pruned to
each share of its multiply-adds. Lines of text are rendered as rapidocr crops and normalises them: words in the fonts
that come with matplotlib, of any size, colours, contrast, slant and noise, half of them turned by 180 degrees. `images`
serves them to any command, too: edgeprune prune ... --data examples/benchmarks/text_direction.py:images

A pruned network's agreement is the share of other lines on which it says the same as the network did before; right is
the share that it says rightly. --heal distils it, too, on the lines that gkp-cal looks at, for so many minutes or
(auto) as many steps as edgeprune takes by itself; the labels are not read. Latency is that of the ONNX file in ONNX
Runtime, one thread, batch 1, as a share of the imported network's, exported alike, in the same interleaved run.
table.md is what was found.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import our_methods
import side_by_side
import torch
from numpy.typing import NDArray
from our_methods import Wanted
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor, nn

import edgeprune
from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.datasets.images import Dataset, batches
from edgeprune.errors import EdgepruneError
from edgeprune.profiling.environment import load_average
from edgeprune.profiling.measurement import median_interval, paired_ratios
from edgeprune.pruning.network import Network, load_network
from edgeprune.pruning.options import CALIBRATION_IMAGES, Heal, NetworkSource
from edgeprune.pruning.pruned import Pruned

HEIGHT, WIDTH = 48, 192
"""Of the network's input, as rapidocr has it."""
FONTS = tuple(f"DejaVu{name}" for name in ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "Serif", "Serif-Italic"))
VOCABULARY = (
    "about after again all also and any area back because before between both came city company could country day "
    "different does down each early end even every example family few find first follow found from give good great "
    "group hand have help here high home house important into just keep know large last later learn letter life light "
    "line little live long made make many may mean might money more most mother move much must name near need never "
    "next night number often old only open order other over page paper part people place plant point price problem "
    "program question read right river room said same school second should show small some sound spell start state "
    "still story study system take tell than their there these thing think those thought three through time today "
    "together total under until water week where which while white whole word work world would write year young"
)
RIGHT = 99.0
"""Per cent of the lines that the network has to say rightly before anything is pruned."""


def images(split: str) -> tuple[Tensor, Tensor]:
    """Lines of text for --data: (N, 3, 48, 192) float32, normalised, and labels (N,): 1 where a line is turned."""
    count, seed = {"train": (CALIBRATION_IMAGES, 0), "test": (1000, 1)}[split]
    return lines(count, seed)


def lines(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many lines of text, the same for the same seed, every other one turned by 180 degrees."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = [normalised(np.rot90(line(rng), 2 * int(turned))) for turned in labels]
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(labels)


def line(rng: np.random.Generator) -> NDArray[np.uint8]:
    """One line of text, upright, (H, W, 3), as a detector of text would crop it."""
    font = _font(str(rng.choice(FONTS)), int(rng.integers(18, 60)))
    text = _text(rng)
    left, top, right, bottom = font.getbbox(text)
    margins = rng.integers(1, max(font.size // 5, 2), size=4)
    size = (int(right - left + margins[0] + margins[1]), int(bottom - top + margins[2] + margins[3]))
    paper, ink = _colours(rng)
    picture = Image.new("RGB", size, paper)
    ImageDraw.Draw(picture).text((int(margins[0] - left), int(margins[2] - top)), text, fill=ink, font=font)
    picture = picture.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=paper)
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.choice((0, 0.03)) * rng.random() * font.size)))
    noise = rng.normal(0, rng.uniform(0, 12), (size[1], size[0], 3))
    shade = np.linspace(rng.uniform(-20, 20), rng.uniform(-20, 20), size[0])[None, :, None]
    return (np.asarray(picture) + noise + shade).clip(0, 255).astype(np.uint8)


def _text(rng: np.random.Generator) -> str:
    """One to five words, some with capitals, and some numbers."""
    words = [str(word) for word in rng.choice(VOCABULARY.split(), rng.integers(1, 6))]
    words = [word.capitalize() if rng.random() < 0.3 else word for word in words]
    if rng.random() < 0.2:
        words.append(f"{rng.integers(10, 10000) / 100:.2f}")
    return " ".join(words).upper() if rng.random() < 0.15 else " ".join(words)


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Paper and ink: dark on light more often than light on dark, at least 70 of 255 apart."""
    light, dark = rng.integers(170, 256, 3), rng.integers(0, 100, 3)
    paper, ink = (light, dark) if rng.random() < 0.75 else (dark, light)
    return tuple(map(int, paper)), tuple(map(int, ink))


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def normalised(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) -> (3, 48, 192): as high as the input, at most as wide, from -1 to 1, and zeros on the right."""
    height, width = picture.shape[:2]
    taken = min(math.ceil(HEIGHT * width / height), WIDTH)
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize((taken, HEIGHT), Image.Resampling.BILINEAR)
    found = np.zeros((3, HEIGHT, WIDTH), np.float32)
    found[:, :, :taken] = np.asarray(resized, np.float32).transpose(2, 0, 1)[::-1] / 127.5 - 1  # BGR
    return found


def answers(model: nn.Module, data: Dataset) -> Tensor:
    """(N,) what the network says of each line."""
    with torch.inference_mode():
        return torch.cat([model(pixels).argmax(1) for pixels, _ in batches(data, 100)])


def share(same: Tensor) -> float:
    return 100 * same.double().mean().item()


@dataclass(frozen=True)
class Bench:
    """The network, the lines, and what it said of them."""

    network: Network
    seen: Dataset
    test: Dataset
    said: Tensor
    out: Path
    seconds: float

    def rows(self, wanted: Wanted, heals: Sequence[str]) -> Iterator[str]:
        """A line of the table for each way to heal; InputError if the method cannot."""
        pruned = our_methods.pruned(self.network, wanted, self.seen)
        ratios = self.ratios(pruned, f"{wanted.method}-{wanted.share:g}")
        low, high = median_interval(ratios)
        macs = pruned.macs.pruned / pruned.macs.dense
        for heal in heals:
            healed = self.healed(pruned, heal)
            found = answers(healed.model, self.test)
            how = heal if healed.healing is None or healed.healing.kept else f"{heal}: no better, left as it was"
            yield (
                f"| {wanted.method} | {wanted.share:g} | {how} | {macs:.3f} | {share(found == self.said):.1f} | "
                f"{share(found == self.test.labels):.1f} | {statistics.median(ratios):.3f} | {low:.3f}-{high:.3f} |"
            )

    def healed(self, pruned: Pruned, heal: str) -> Pruned:
        asked = Heal.parse(heal)
        return our_methods.healed(pruned, self.seen, asked) if asked.wanted else pruned

    def ratios(self, pruned: Pruned, case: str) -> Sequence[float]:
        """The pruned network's time over that of the network before, round by round."""
        bundle = edgeprune.export(pruned, self.out / case, overwrite=True, tune=bool(pruned.plan.grouped()))
        paths = {"dense": bundle.path(DENSE_MODEL), "pruned": bundle.path(MODEL)}
        times = side_by_side.measured(paths, self.test.images[:1].numpy(), self.seconds)
        return paired_ratios(times["pruned"], times["dense"])


def table(
    bench: Bench, methods: Sequence[str], budgets: Sequence[float], align: str, heals: Sequence[str]
) -> Iterator[str]:
    yield f"{len(bench.test)} lines, of which the network says {share(bench.said == bench.test.labels):.1f} % rightly"
    yield ""
    yield "| method | asked MACs | healed | MACs | agreement, % | right, % | latency | 95 % |"
    yield f"|{'---|' * 8}"
    left_out = []
    block = int(align) if align.isdigit() else align
    for method in methods:
        for budget in budgets:
            try:
                yield from bench.rows(Wanted(method, budget, align=block), heals)
            except EdgepruneError as error:
                left_out.append(f"- {method} at {budget:g} left out: {error}")
    yield from ("", *left_out, f"load {load_average():.1f} while measuring")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="ch_ppocr_mobile_v2.0_cls_infer.onnx")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundles and table.md")
    parser.add_argument("--methods", default="fpgm,sfp,gkp-cal", help="separated by commas (%(default)s)")
    parser.add_argument("--budgets", default="0.8,0.6", help="shares of the multiply-adds (%(default)s)")
    parser.add_argument("--align", default="none", help="auto, none, or a number of channels (%(default)s)")
    parser.add_argument("--heal", default="none", help="none, auto, or minutes, separated by commas (%(default)s)")
    parser.add_argument("--lines", type=int, default=1000, help="to test on (%(default)d)")
    parser.add_argument("--calibration-lines", type=int, default=CALIBRATION_IMAGES, help="%(default)d")
    parser.add_argument("--seconds", type=float, default=10.0, help="most that one latency may take (%(default)g)")
    asked = parser.parse_args(given)
    network = load_network(NetworkSource("", asked.model, input_size=(HEIGHT, WIDTH)))
    seen, test = dataset(asked.calibration_lines, seed=0), dataset(asked.lines, seed=1)
    said = answers(network.model, test)
    if (right := share(said == test.labels)) < RIGHT:
        raise SystemExit(f"{asked.model} says {right:.1f} % of the lines rightly; expected {RIGHT} %: another network?")
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(network, seen, test, said, asked.out, asked.seconds)
    found = []
    budgets = [float(share) for share in asked.budgets.split(",")]
    for text in table(bench, asked.methods.split(","), budgets, asked.align, asked.heal.split(",")):
        print(text, flush=True)
        found.append(text)
    (asked.out / "table.md").write_text("\n".join(found) + "\n")


def dataset(count: int, seed: int) -> Dataset:
    """Lines of text as they go into the network."""
    pixels, labels = lines(count, seed)
    return Dataset(f"{count} lines", pixels, labels, ("0", "180"), (0.0,) * 3, (1.0,) * 3, may_flip=False)


if __name__ == "__main__":
    main()
