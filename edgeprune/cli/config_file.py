"""--config: a TOML file with values for flags."""

from __future__ import annotations

from pathlib import Path

from edgeprune.errors import InputError, first_line


def config_tokens(tokens: list[str]) -> list[str]:
    """The flags that --config's file gives and the command line does not, spelt as on the command line."""
    given = [token.partition("=")[0] for token in tokens]
    if "--config" not in given:
        return []
    place = given.index("--config")
    path = Path(tokens[place].partition("=")[2] or (tokens[place + 1] if place + 1 < len(tokens) else ""))
    import tomllib  # 2 ms that most runs do without

    if not path.is_file():
        raise InputError("no such file", where=path, expected="a TOML file with values for flags")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is not TOML: {first_line(error)}", where=path, expected="lines such as groups = 4"
        ) from error
    found: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            raise InputError(f"[{name}] is a table", where=path, expected="flags at the top, such as groups = 4")
        if {flag, f"--no-{flag[2:]}"} & set(given) or (flag == "--out" and "-o" in given):
            continue
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            found += [f"{flag}={item}" for item in value]
        else:
            found.append(f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return found
