"""Families of CNNs through the whole path: pruned in groups (GConv, 4 groups) and thinned (FPGM, rate 0.4), exported
with parity, split over two devices, profiled once.

python examples/benchmarks/zoo.py -o runs/zoo [--only yolo-like,timm:regnetx_002] [--methods gconv,fpgm]

One small member of each family of torchvision and timm (where that is installed), and a detector, a feature pyramid and
a segmenter, with random weights and BatchNorm statistics as training leaves them, on images of 64 pixels. Each network
is sent through in a process of its own, and its result is kept: run the same line again after an interruption. The
table (results.md) tells what was pruned, what stayed and why, and what was refused.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import zoo_networks

TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v2 "
    "mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 "
    "squeezenet1_1 vgg11_bn wide_resnet50_2"
)
TIMM = (
    "convnext_atto cspdarknet53 cspresnet50 darknet53 dla34 dpn48b eca_resnet33ts edgenext_xx_small efficientnet_b0 "
    "ese_vovnet19b_slim fastvit_t8 fbnetc_100 gernet_s ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small "
    "inception_next_tiny lcnet_050 mixnet_s mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 nfnet_l0 "
    "regnetx_002 regnety_002 repghostnet_050 repvgg_a0 res2net50_26w_4s resnest14d resnetv2_50 rexnet_100 "
    "selecsls42 seresnet18 skresnet18 starnet_s1 tf_efficientnetv2_b0 tinynet_e xception41"
)
METHODS: Mapping[str, Mapping[str, Any]] = {"gconv": {"groups": 4}, "fpgm": {"rate": 0.4}}
TIME_LIMIT_S = 900
THINNED = 0.8
"""A family counts as thinned where at most so much of its MACs is left."""


def names() -> list[str]:
    """Every network that can be built here."""
    timm = [f"timm:{name}" for name in TIMM.split()] if importlib.util.find_spec("timm") else []
    return [*zoo_networks.NETWORKS, *(f"torchvision:{name}" for name in TORCHVISION.split()), *timm]


def built(name: str) -> nn.Module:
    """A network with random weights, and BatchNorm statistics of some spread."""
    torch.manual_seed(0)
    source, _, own = name.rpartition(":")
    if not source:
        model = zoo_networks.NETWORKS[own]()
    elif source == "timm":
        model = importlib.import_module("timm").create_model(own, pretrained=False)
    else:
        few = {"aux_logits": False, "init_weights": False} if own in ("googlenet", "inception_v3") else {}
        model = importlib.import_module("torchvision.models").get_model(own, weights=None, **few)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model.eval()


def side(name: str) -> int:
    """Pixels: Inception's strides leave nothing of 64."""
    return 96 if "inception_v3" in name else 64


def one(name: str, method: str) -> dict[str, Any]:
    """A network through the whole path: what became of it, or why it was refused."""
    import edgeprune
    from edgeprune.errors import EdgepruneError
    from edgeprune.profiling.setup import ProfileOptions

    started, found = time.perf_counter(), dict[str, Any](name=name, method=method, reached="built")
    try:
        model = built(name)
        pruned = edgeprune.prune(model, torch.zeros(1, 3, side(name), side(name)), method=method, **METHODS[method])
        found |= {"reached": "pruned", "macs": pruned.macs.dense, "left": pruned.macs.pruned / pruned.macs.dense}
        notes = Counter(entry.note for entry in pruned.plan.layers if entry.is_dense and entry.note)
        found |= {
            "layers": len(pruned.plan.layers),
            "grouped": len(pruned.plan.grouped()),
            "stayed": notes.most_common(3),
        }
        with tempfile.TemporaryDirectory() as folder:
            bundle = edgeprune.export(pruned, Path(folder) / "bundle", as_planned=True)
            found |= {
                "reached": "exported",
                "parity": bundle.manifest.parity.max_rel if bundle.manifest.parity else None,
            }
            if pruned.plan.grouped():
                edgeprune.split(bundle.folder, Path(folder) / "split", devices=2, force=True)
                found |= {"reached": "split"}
            options = ProfileOptions(warmup=1, iterations=5, per_layer=False, fresh_process=False)
            (result,) = edgeprune.profile(bundle.folder, options=options).results
            found |= {"reached": "profiled", "speedup": result.realistic_speedup}
    except EdgepruneError as error:
        found |= {"refused": str(error)}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found |= {"traceback": f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def sweep(wanted: Iterable[str], methods: Iterable[str], out: Path) -> list[dict[str, Any]]:
    """The results of all networks, kept ones first read; each new one from a process of its own."""
    results = []
    for name in wanted:
        for method in methods:
            kept = out / f"{name.replace(':', '-')}.{method}.json"
            if not kept.is_file():
                command = [sys.executable, __file__, "--one", name, "--methods", method]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
                    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
                    told = json.loads(last[0]) if done.returncode == 0 else {"traceback": done.stderr.strip()[-300:]}
                except subprocess.TimeoutExpired:
                    told = {"traceback": f"not done after {TIME_LIMIT_S} s"}
                kept.write_text(json.dumps({"name": name, "method": method} | told))
            results.append(json.loads(kept.read_text()))
            print(line(results[-1]), flush=True)
    return results


def line(found: Mapping[str, Any]) -> str:
    """One row of the table."""
    left = f"{found['left']:.2f}" if "left" in found else ""
    parity = f"{found['parity']:.0e}" if found.get("parity") is not None else ""
    grouped = f"{found['grouped']} of {found['layers']}" if "grouped" in found else ""
    stayed = "; ".join(f"{note} ({count})" for note, count in found.get("stayed", ()))
    why = found.get("refused") or found.get("traceback") or stayed
    cells = (
        found["name"],
        found["method"],
        found.get("reached", ""),
        left,
        grouped,
        parity,
        why[:220].replace("|", "/"),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def summary(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Shares of the networks, by method."""
    told = []
    for method in METHODS:
        own = [found for found in results if found["method"] == method]
        if own:
            ended = sum("traceback" not in found for found in own)
            passed = sum(found.get("reached") == "profiled" for found in own)
            thinned = sum(found.get("left", 1.0) <= THINNED and found.get("reached") == "profiled" for found in own)
            told.append(
                f"{method}: {passed} of {len(own)} all the way, {ended} without a traceback, "
                f"{thinned} with at most {THINNED:.0%} of their MACs"
            )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--only", default="", help="networks, separated by commas; by default all")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        with contextlib.redirect_stdout(sys.stderr):
            found = one(asked.one, asked.methods)
        print(json.dumps(found))
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in asked.only.split(",") if name] or names()
    results = sweep(wanted, asked.methods.split(","), asked.out)
    head = ["| network | method | reached | MACs left | grouped | parity | why |", "|---|---|---|---|---|---|---|"]
    (asked.out / "results.md").write_text("\n".join([*summary(results), "", *head, *map(line, results)]) + "\n")
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
