"""The verbs in the order in which the help lists them."""

from __future__ import annotations

from cyclopts import App

from edgeprune.cli.verbs import (
    convert,
    demo,
    deploy,
    eval,
    export,
    inspect,
    list,
    profile,
    prune,
    report,
    run,
    split,
    train,
    tune,
    worker,
)

app = App(
    name="edgeprune",
    help="Prune a trained CNN into dense grouped convolutions, export ONNX, split it over devices, and measure the "
    "real speed-up beside the promised one.",
    help_epilogue="Start with `edgeprune demo`. Every verb has --help with examples.\n\n"
    "Exit codes: 0 done; 1 the input is at fault; 2 usage; 3 a gate failed; 70 a bug; 130 interrupted.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
app.command(demo.demo)
app.command(train.train)
app.command(prune.prune)
app.command(export.export)
app.command(convert.convert)
app.command(split.split)
app.command(run.run)
app.command(worker.worker)
app.command(deploy.deploy)
app.command(tune.tune)
app.command(profile.profile)
app.command(report.report)
app.command(eval.evaluate, name="eval")
app.command(inspect.inspect)
app.command(list.list_, name="list")
