"""GConv's two solvers on one trained network: the importance that they keep, and their time.

python examples/benchmarks/gconv_solvers.py resnet56.pt --arch resnet56 [--groups 2,4,8] [--repeats 5] [--effort 1]

Each 3x3 convolution but the first is divided for itself. The solvers take turns, and the fastest of the repeats counts:
processor time on one thread, which other work on the machine disturbs least. "unsorted" divides channels as they come.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from edgeprune.methods.gconv.importance import kernel_importance
from edgeprune.methods.gconv.solver import Matrix, Solver, kept_importance, solve
from edgeprune.pruning.network import layer_weights, load_network
from edgeprune.pruning.options import NetworkSource


def importances(checkpoint: Path, arch: str) -> list[Matrix]:
    """Of every 3x3 convolution but the first."""
    weights = layer_weights(load_network(NetworkSource(arch, checkpoint)).model).values()
    return [kernel_importance("l2", weight) for weight in weights if weight.shape[2:] == (3, 3)][1:]


def measure(matrices: list[Matrix], groups: int, solver: Solver) -> tuple[float, float]:
    """Mean share of the layers' importance that is kept, and milliseconds for all layers."""
    problems = [(matrix,) for matrix in matrices]
    started = time.process_time()
    divisions = solve(problems, groups, solver)
    milliseconds = (time.process_time() - started) * 1e3
    shares = [
        kept_importance(matrix, division.rows, division.columns[0]) / matrix.sum()
        for matrix, division in zip(matrices, divisions, strict=True)
    ]
    return float(np.mean(shares)), milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--groups", default="2,4,8", help="numbers of groups, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--effort", type=int, default=1, help="of the alternating solver")
    asked = parser.parse_args()
    matrices = importances(asked.checkpoint, asked.arch)
    solvers = {
        "unsorted": Solver("paper", rounds=0),
        "paper": Solver("paper"),
        "alternating": Solver(effort=asked.effort),
    }
    print(
        f"{len(matrices)} layers\n\n| groups | solver | importance kept | over paper | ms |\n|---:|---|---:|---:|---:|"
    )
    totals = dict.fromkeys(solvers, 0.0)
    with threadpool_limits(limits=1):
        for groups in map(int, asked.groups.split(",")):
            fitting = [matrix for matrix in matrices if not any(size % groups for size in matrix.shape)]
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in solvers}
            for _ in range(asked.repeats):
                for name, solver in solvers.items():
                    taken[name].append(measure(fitting, groups, solver))
            paper = taken["paper"][0][0]
            for name, results in taken.items():
                kept, fastest = results[0][0], min(milliseconds for _, milliseconds in results)
                totals[name] += fastest
                print(f"| {groups} | {name} | {kept:.4f} | {100 * (kept / paper - 1):+.2f} % | {fastest:.1f} |")
    print("\nIn all: " + ", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in totals.items()))


if __name__ == "__main__":
    main()
