"""Command-line flags of a frozen configuration, and the main function of every binary.

Each setting of the configuration is one flag of its name, type, default and help text; those of a part with a prefix
are ``--part.setting`` (``gan_leak.settings``). Presets are files of flags in ``experiments/presets``; later flags
override them.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

from gan_leak.files import check_writable_name, open_regular, user_path
from gan_leak.machine import check_backend
from gan_leak.runs.hosts.compilation_cache import keep_compiled_programs
from gan_leak.runs.hosts.interruption import interruptible, leave_on_signals, on_interruption
from gan_leak.runs.hosts.processes import join_processes
from gan_leak.runs.storage.disk import refusal
from gan_leak.runs.storage.integrity import RefusedError
from gan_leak.settings import make, settings_of

PRESETS = pathlib.Path(__file__).parents[1] / "presets"
BAD_INPUT_STATUS = 2
REFUSED_BY_DISK_STATUS = os.EX_IOERR
_LONGEST_SHOWN = 60
_LONGEST_LINE = 2000
_LARGEST_FLAGFILE = 2**20
_CONTINUED = re.compile(r"\\\n\s*")
_DEFINERS: dict[Any, Callable[..., Any]]
_DEFINERS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define_flags(
    config_class: type, flag_values: flags.FlagValues = flags.FLAGS, *, run_directory: bool = True
) -> None:
    """Define a flag for every setting of the dataclass, and the common flags of all binaries, such as ``--workdir``.

    run_directory: whether the binary has a run directory; without one it has no common flags.
    Raises TypeError for a setting of a type other than bool, int, float and str.
    """
    # --help of absl shows only the flags of the main module.
    common: dict[str, Any] = {"flag_values": flag_values, "module_name": sys.argv[0]}
    for name, setting in settings_of(config_class).items():
        if setting.type not in _DEFINERS:
            raise TypeError(f"{name}: a flag cannot hold {setting.type}")
        # ``check_values`` refuses other values than the choices, with the same error for every caller.
        choices = f"<{'|'.join(map(str, setting.choices))}>: " if setting.choices else ""
        _DEFINERS[setting.type](name, setting.default, choices + setting.help, **common)
    if not run_directory:
        return
    flags.DEFINE_string("workdir", None, "Directory of the run; runs/<binary>-<time> if left out.", **common)
    flags.DEFINE_bool("resume", False, "Continue the interrupted run in --workdir from its last checkpoint.", **common)
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Directory of the compilation cache, or 'off'; if left out, in the user's cache directory.",
        **common,
    )
    flags.DEFINE_string(
        "preset",
        None,
        "Use the flags of experiments/presets/<preset>.flags; the folder is optional. Can be repeated.",
        **common,
    )


def config_from_flags(config_class: type, flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """Build the configuration from parsed flags."""
    return make(config_class, **{name: flag_values[name].value for name in settings_of(config_class)})


def define_process_flags() -> None:
    """Define the flags of a run of several processes."""
    common: dict[str, Any] = {"module_name": sys.argv[0]}
    flags.DEFINE_bool(
        "distributed",
        False,
        "Share the run with the other processes that were started with the same flags. SLURM, Open MPI, Kubernetes and "
        "TPU pods connect them; elsewhere set the next three flags.",
        **common,
    )
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0.", **common)
    flags.DEFINE_integer("num_processes", None, "Number of processes that share the run.", **common)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0; process 0 writes the results.", **common)


def _join_processes() -> None:
    values = flags.FLAGS
    given = {name: values[name].value for name in ("coordinator_address", "num_processes", "process_id")}
    if values.distributed:
        join_processes(**given)
    for name, value in given.items():
        if value is not None and not values.distributed:
            raise ValueError(f"{name}={value}: expected together with --distributed")


def run_binary(
    prepare: Callable[[Any, pathlib.Path, bool], Any],
    execute: Callable[[Any], int | None],
    config_class: type,
    *,
    many_processes: bool = False,
) -> None:
    """Run ``execute(prepare(config, workdir, resume))`` with flags from the command line, and exit with its status.

    ``prepare`` validates. Its ValueError or OSError means bad input: one line, and exit status 2. The same holds for
    wrong flags and for a ``RefusedError`` of ``execute``. A full or broken disk gives one line and exit status 74.
    Other exceptions of ``execute`` are defects and keep their traceback. Both functions run in a second thread, so that
    Ctrl-C and SIGTERM end the process at any moment, with status 130 and 143, after the functions of
    ``on_interruption``. many_processes: whether several processes may share a run.
    """
    leave_on_signals()
    define_flags(config_class)
    if many_processes:
        define_process_flags()

    def work() -> int:
        try:
            keep_compiled_programs(flags.FLAGS.compilation_cache)
            if many_processes:
                _join_processes()
            check_backend()
            workdir = _workdir(flags.FLAGS)
            prepared = prepare(config_from_flags(config_class), workdir, flags.FLAGS.resume)
        except (ValueError, OSError) as error:
            _fail(error)
        try:
            with on_interruption(lambda: f"interrupted; --workdir={workdir} --resume continues"):
                return execute(prepared) or 0
        except RefusedError as error:
            _fail(error)
        except OSError as error:
            if (refused := refusal(error)) is None:
                raise
            print(f"error: workdir={workdir}: {refused}; --resume continues afterwards", file=sys.stderr)
            return REFUSED_BY_DISK_STATUS

    app.run(lambda _: interruptible(work), flags_parser=_parse)


def run_tool(work: Callable[[Any], int | None], config_class: type) -> None:
    """Run ``work(config)`` of a binary that has no run directory, and exit with its status.

    A ValueError or OSError, and wrong flags, give one line and exit status 2.
    """
    leave_on_signals()
    define_flags(config_class, run_directory=False)

    def main(_: list[str]) -> int:
        try:
            return work(config_from_flags(config_class)) or 0
        except (ValueError, OSError) as error:
            _fail(error)

    app.run(main, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        expanded = expand_presets(arguments)
        check_flagfiles(expanded)
        remaining = flags.FLAGS(expanded)
        if len(remaining) > 1:
            raise ValueError(f"unexpected argument {remaining[1]!r}; flags are given as --name=value")
        if "preset" in flags.FLAGS and flags.FLAGS.preset is not None:
            raise ValueError(f"preset={flags.FLAGS.preset}: expected on the command line, not in a flagfile")
    except (flags.Error, ValueError, OSError) as error:
        _fail(error)
    except SystemExit:
        # absl exits here only after it showed the help, with a status of failure.
        raise SystemExit(0) from None
    if flags.FLAGS["verbosity"].using_default_value:
        # absl would lower it to INFO, and Orbax logs every step at that level.
        flags.FLAGS["verbosity"].using_default_value = False
    return remaining


def expand_presets(arguments: list[str]) -> list[str]:
    """Replace each ``--preset=name`` by the flags of the preset, recursively.

    Raises ValueError for an unknown preset, with the known names, and for a preset that includes itself.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--preset", "-preset"):
            expanded += preset_arguments(value if equals else next(rest, ""))
        else:
            expanded.append(argument)
    return expanded


def check_flagfiles(arguments: Sequence[str], within: tuple[pathlib.Path, ...] = ()) -> None:
    """Raise ValueError for a ``--flagfile`` that is a pipe, a device or too large, also inside another flagfile.

    absl reports a missing file.
    """
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.strip().partition("=")
        if name not in ("--flagfile", "-flagfile"):
            continue
        path = user_path("flagfile", value if equals else next(rest, ""))
        if path in within or not path.exists():
            continue
        try:
            with open_regular(path) as file:
                text = file.read(_LARGEST_FLAGFILE + 1)
            if len(text) > _LARGEST_FLAGFILE:
                raise ValueError(f"expected at most {_LARGEST_FLAGFILE} bytes")
            check_flagfiles(text.decode().splitlines(), (*within, path))
        except (ValueError, OSError) as error:
            raise ValueError(f"flagfile={path}: {error}") from error


def preset_arguments(preset: str, within: tuple[str, ...] = ()) -> list[str]:
    """The flags of a preset, with included presets in their places; later flags override earlier ones.

    A line that ends with a backslash continues on the next line.
    """
    if preset in within:
        raise ValueError(f"preset={preset}: includes itself, through {' and '.join(within)}")
    arguments: list[str] = []
    for line in _CONTINUED.sub("", preset_text(preset)).splitlines():
        flag = line.strip()
        if flag.startswith("--preset="):
            arguments += preset_arguments(flag.partition("=")[2], (*within, preset))
        elif flag and not flag.startswith(("#", "//")):
            arguments.append(flag)
    return arguments


def preset_text(preset: str) -> str:
    """The text of a preset, see ``preset_path``."""
    return preset_path(preset).read_text(encoding="utf-8")


def preset_path(preset: str) -> pathlib.Path:
    """The file of a preset, named ``<folder>/<name>``, or ``<name>`` if the name is unique.

    Only files in the folder of presets are found, also for a name with '..'. Raises ValueError for an unknown name,
    with the known names.
    """
    paths = sorted(path for path in PRESETS.rglob("*.flags") if path.is_file())
    known = {path.relative_to(PRESETS).with_suffix("").as_posix(): path for path in paths}
    counts = collections.Counter(path.stem for path in paths)
    shortest = {path.stem if counts[path.stem] == 1 else name: path for name, path in known.items()}
    found = known.get(preset) or shortest.get(preset)
    if found is None:
        given = preset if len(preset) <= _LONGEST_SHOWN else f"{preset[:_LONGEST_SHOWN]}..."
        raise ValueError(f"preset={given}: expected one of {', '.join(sorted(shortest))}")
    return found


def check_distinct(name: str, values: Sequence[Any]) -> None:
    """Raise ValueError, with the ``name`` of the flag, for a repeated value."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{name}={value}: there twice, expected every value once")


def config_from_arguments(config_class: type, arguments: list[str]) -> Any:
    """The configuration of a command line with these flags and presets.

    Raises ValueError for unknown flags and for values of a wrong type.
    """
    flag_values = flags.FlagValues()
    define_flags(config_class, flag_values)
    try:
        remaining = flag_values(["", *expand_presets(arguments)])
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from error
    if len(remaining) > 1:
        raise ValueError(f"unexpected argument {remaining[1]!r}; flags are given as --name=value")
    return config_from_flags(config_class, flag_values)


def _workdir(flag_values: flags.FlagValues) -> pathlib.Path:
    if flag_values.workdir is not None:
        return check_writable_name("workdir", user_path("workdir", flag_values.workdir))
    if flag_values.resume:
        raise ValueError("resume=True: expected --workdir, the directory of the run to continue")
    name = f"{pathlib.Path(sys.argv[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return check_writable_name("workdir", pathlib.Path("runs") / name)


def _fail(error: Exception) -> NoReturn:
    line = " ".join(str(error).split())
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    print("error:", line, file=sys.stderr)
    raise SystemExit(BAD_INPUT_STATUS)
