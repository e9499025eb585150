"""The command line, `rayscheduler`: one function per command, registered here.

Rules of this package: commands import what they need when they run, so that `--help` is instant and a
broken Ray breaks only the commands that use it. Every problem ends as one line on stderr and an exit
code: 2 for a bad file or command line, 1 for what could not be done, 130 after Ctrl-C.
A new command is a module here and a line in `_commands`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from rayscheduler.cli import control, estimate, explain, files, keys, rehearse, service
from rayscheduler.cli.output import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_PROBLEM, complain
from rayscheduler.errors import ConfigError, RayschedulerError

# Typer brought its own copy of click in 2026; both know these two by the same place in the tree.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

TRACEBACK_ENV = "RAYSCHEDULER_TRACEBACK"

app = typer.Typer(
    name="rayscheduler",
    help="Serve many more models than your GPUs can hold, and never over-commit a GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _commands() -> None:
    app.command("up")(service.up)
    app.command("down")(service.down)
    app.command("status")(control.status)
    app.command("load")(control.load)
    app.command("unload")(control.unload)
    app.command("pin")(control.pin)
    app.command("unpin")(control.unpin)
    app.command("decisions")(control.decisions)
    app.command("explain")(explain.explain)
    app.command("estimate")(estimate.estimate)
    app.command("resources")(files.resources)
    app.command("simulate")(rehearse.simulate)
    app.command("plan")(rehearse.plan)
    app.command("replay")(rehearse.replay)
    app.add_typer(files.config_app, name="config")
    app.add_typer(keys.keys_app, name="keys")


_commands()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Ends the process with the exit code; never with a traceback for a known problem."""
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="rayscheduler", standalone_mode=False)
    except _UsageError as problem:
        return _usage(problem)
    except ConfigError as problem:
        complain(str(problem))  # begins with file and line, where editors look for them
        return EXIT_BAD_INPUT
    except RayschedulerError as problem:
        complain(f"rayscheduler: {problem}")
        return EXIT_BAD_INPUT if problem.http_status == 400 else EXIT_PROBLEM
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has enough; Python would complain about it once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if os.environ.get(TRACEBACK_ENV):
            raise
        complain(f"rayscheduler: {type(problem).__name__}: {problem}")
        complain(f"This should not happen. {TRACEBACK_ENV}=1 shows where it did.")
        return EXIT_PROBLEM
    return code if isinstance(code, int) else 0


def _usage(problem: Exception) -> int:
    context = getattr(problem, "ctx", None)
    command = context.command_path if context is not None else "rayscheduler"
    message = problem.format_message()  # type: ignore[attr-defined]
    if type(problem).__name__ == "NoArgsIsHelpError":
        return EXIT_BAD_INPUT  # the help is printed already
    end = "" if message.endswith("?") else "."
    complain(f"{command}: {message.rstrip('.')}{end} Try '{command} --help'.")
    return EXIT_BAD_INPUT


__all__ = ["app", "main"]
