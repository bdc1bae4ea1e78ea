"""The command `sdsgsm`: its commands are loaded when one is called, so that its help is there at once."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

from ..common.version import package_version

try:
    import typer
except ModuleNotFoundError as error:
    sys.exit(f"sdsgsm: the package {error.name!r} is missing: pip install 'sdsgsm-fast[cli]'")

COMMANDS = {
    "attack": "Attack a data set into a folder; the same command again goes on where it was stopped.",
    "occlude": "Compute occlusion maps of a data set into a folder; the same command again goes on.",
    "verify": "Read a set again: every byte, every verdict; the exit status is 1 if something is wrong.",
    "report": "Make a page of a set: figures and a gallery, one HTML file that needs nothing else.",
    "compare": "Compare attacks on a model and images: table, CSV, JSON, Markdown and figures.",
    "demo": "Attack PhotoNet on crops of real photographs: a table, its JSON and a figure.",
    "info": "Tell versions, devices and backends, and why a backend is missing.",
}
"""The first line of each command's help; its module is NAME_command."""

_PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}

app = typer.Typer(
    help="SD-SGSM adversarial examples and occlusion maps for image classifiers.", no_args_is_help=True, **_PLAIN
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdsgsm-fast {package_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take the options that come before a command."""


def _add(name: str, text: str) -> None:
    """A command that hands all it is given, its help too, to the one of its module."""

    def run(context: typer.Context) -> None:
        try:
            command = getattr(import_module(f".{name}_command", __package__), name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("sdsgsm_fast"):
                raise
            raise ModuleNotFoundError(
                f"the package {error.name!r} is missing: pip install 'sdsgsm-fast[cli]'"
            ) from error
        single = typer.Typer(**_PLAIN)
        single.command(name)(command)
        if code := single(context.args, standalone_mode=False, prog_name=f"sdsgsm {name}"):
            raise typer.Exit(code)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(name, help=text, add_help_option=False, context_settings=settings)(run)


for _name, _text in COMMANDS.items():
    _add(_name, _text)


# The class of click's errors, of which newer versions of typer have one of their own.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False, prog_name="sdsgsm"))
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("sdsgsm: interrupted\n")
        sys.exit(130)
    except _UsageError as error:
        sys.stderr.write(f"sdsgsm: {' '.join(error.format_message().split())}\n")
        sys.exit(2)
    except (ValueError, ModuleNotFoundError, OSError) as error:
        sys.stderr.write(f"sdsgsm: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
