#!/usr/bin/env bash
# ncnn takes Winograd's algorithm for dense 3x3 convolutions whatever the size of the image. With many channels on few
# pixels, as in the last stages of a network on small images, that takes several times as long as without
# (Option.use_winograd_convolution). A guess would be that it is chosen where it is faster.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import statistics
import time
from pathlib import Path

import ncnn
import numpy as np


def milliseconds(channels, size, winograd):
    weights = channels * channels * 9
    lines = [
        "7767517", "2 2", f"Input x 0 1 x 0={size} 1={size} 2={channels}",
        f"Convolution conv 1 1 x y 0={channels} 1=3 4=1 6={weights}",
    ]
    Path("net.param").write_text("\n".join(lines) + "\n")
    values = np.random.default_rng(0).standard_normal(weights).astype(np.float32)
    Path("net.bin").write_bytes(bytes(4) + values.tobytes())
    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_winograd_convolution = 1, winograd
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    assert net.load_param("net.param") == 0 and net.load_model("net.bin") == 0
    image = np.ones((channels, size, size), np.float32)
    blob = ncnn.Mat(image).clone()
    taken = []
    for _ in range(60):
        start = time.perf_counter()
        extractor = net.create_extractor()
        extractor.input("x", blob)
        assert extractor.extract("y")[0] == 0
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[10:]) * 1e3


ratios = {}
for channels, size in ((64, 56), (128, 28), (256, 14), (256, 4), (512, 2)):
    on, off = milliseconds(channels, size, True), milliseconds(channels, size, False)
    ratios[size] = on / off
    print(f"{channels} channels on {size}x{size}: {on:.3f} ms with Winograd, {off:.3f} ms without")
assert ratios[56] < 1 and ratios[2] > 1.5, "changed"
PY
