"""`edgeprune demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from edgeprune.cli.flags.common import Seeded
from edgeprune.cli.flags.kinds import COMMON, Switch


def demo(
    *,
    out: Annotated[Path, Parameter(alias="-o", group=COMMON)] = Path("demo"),
    overwrite: Annotated[Switch, Parameter(group=COMMON)] = False,
    common: Seeded = Seeded(),
) -> None:
    """Show the whole path on real data: train, prune, fine-tune, fold, tune, export, split, run, profile, report, and
    dense and pruned in every runtime that is installed.

    Trains a small ResNet on scikit-learn's handwritten digits, so it needs no download.

    **Examples**

    - `edgeprune demo -o demo` and open demo/report.html

    Parameters
    ----------
    out
        Folder of the bundle: new or empty.
    overwrite
        Replace the bundle that is there.
    """
    from edgeprune.bundles.names import RUNTIMES
    from edgeprune.cli.headline import headline
    from edgeprune.cli.runtime_tables import show_runtimes
    from edgeprune.pipeline.demo import run_demo
    from edgeprune.profiling.runtimes.record import load_runtimes

    result = run_demo(out, overwrite=overwrite, seed=common.seed)
    headline(result)
    show_runtimes(load_runtimes(result.path(RUNTIMES)))
    common.write(result.manifest)
