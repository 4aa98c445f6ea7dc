#!/usr/bin/env bash
# With use_bf16_storage, ncnn gives garbage for a convolution in groups (ConvolutionDepthWise with more than one channel a
# group): other numbers in each run, up to 1e33, and no error. A dense convolution is right to bfloat16's three digits,
# and so is everything in float32. A guess would be that a storage format costs precision alone, or that it is ignored
# where a layer has no code for it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import struct

import ncnn
import numpy as np

rng = np.random.default_rng(0)
image = rng.standard_normal((8, 6, 7)).astype(np.float32)
found = {}
for groups in (1, 2, 4):
    count = 16 * 8 // groups * 9
    kind, grouped = ("Convolution", "") if groups == 1 else ("ConvolutionDepthWise", f" 7={groups}")
    layers = f"Input in 0 1 x\n{kind} c 1 1 x y 0=16 1=3 4=1 5=0 6={count}{grouped}\n"
    with open("m.param", "w") as file:
        file.write(f"7767517\n2 2\n{layers}")
    with open("m.bin", "wb") as file:
        file.write(struct.pack("<I", 0) + rng.standard_normal(count).astype(np.float32).tobytes())

    def run(**settings):
        net = ncnn.Net()
        halves = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")
        for name in halves:
            setattr(net.opt, name, settings.get(name, False))
        net.load_param("m.param"), net.load_model("m.bin")
        extractor = net.create_extractor()
        mat = ncnn.Mat(image).clone()
        extractor.input("x", mat)
        return np.array(extractor.extract("y")[1]).astype(np.float64)

    exact = run()
    off = [float(np.abs(run(use_bf16_storage=True) - exact).max()) for _ in range(5)]
    found[groups] = [value if np.isfinite(value) else float("inf") for value in off]
    print(f"{groups} groups, largest {np.abs(exact).max():.1f}: off by {[f'{value:.2g}' for value in off]} in bfloat16")
assert max(found[1]) < 0.5, "changed: dense is wrong, too"
assert all(max(found[groups]) > 10 for groups in (2, 4)), "changed: groups are right in bfloat16"
PY
