"""What every verb takes, and where it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from edgeprune.cli.flags.kinds import COMMON, Integer, OptionalPath, Switch, flags
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.pipeline.output import Output


@Parameter(name="*", group=COMMON)
@flags
class Common:
    """What every verb takes."""

    json: OptionalPath = None
    """Write the result as JSON to this file, too."""
    config: OptionalPath = None
    """TOML file with values for flags (`groups = 4`); flags on the command line win."""
    quiet: Switch = False
    """No progress bars and notes."""

    def __post_init__(self) -> None:
        if self.json is not None:  # written when all is done
            from edgeprune.io.files import check_file

            check_file(self.json)

    def write(self, value: Any) -> None:
        """Write the verb's result where --json asks for it."""
        if self.json is not None:
            from edgeprune.io.files import pretty_json, write_atomically

            write_atomically(self.json, pretty_json(value))


@Parameter(name="*", group=COMMON)
@flags
class Seeded(Common):
    """What every verb with chance in it takes."""

    seed: Integer = 0
    """Same seed and input, same plan and ONNX bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise InputError(f"--seed {self.seed} is negative", expected="0 or a positive integer")


@Parameter(name="*", group=COMMON)
@flags
class OutFlags:
    """Where the bundle goes."""

    out: Annotated[Path, Parameter(alias="-o")]
    """Folder of the bundle: new or empty."""
    overwrite: Switch = False
    """Replace the bundle that is there."""

    def output(self) -> Output:
        from edgeprune.pipeline.output import Output

        return Output(self.out, self.overwrite)
