"""The rooms of the package form layers: no import runs upwards, and runs draw nothing."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# By layer, the rooms and modules directly in gan_leak; a room may import its own layer and those below.
LAYERS = (
    {"types", "trees", "files", "machine", "settings"},
    {"data", "models", "collaboration", "defenses", "attacks"},
    {"evaluation"},
    {"config", "performance"},
    {"runs"},
)
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# Reports draw what was evaluated and what runs return, and know nothing of how it was computed.
BELOW_REPORTS = {"types", "trees", "settings", "config", "evaluation", "reports"}
RESULTS = {"gan_leak.runs.federated.result"}


def imports_of(path):
    """The modules of the package that a file imports, those inside functions among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            # Of a module, or of one in a package; the longer name is kept where it is a module.
            found |= {
                longer if is_module(longer := f"{node.module}.{alias.name}") else node.module for alias in node.names
            }
    return {name for name in found if name.split(".")[0] in ("gan_leak", "experiments")}


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def room_of(module):
    return [*module.split("."), ""][1]


MODULES = {
    path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "gan_leak").rglob("*.py"))
    if path.parent != ROOT / "gan_leak" or path.stem in RANKS
}


def test_every_room_has_a_layer():
    folders = {path.name for path in (ROOT / "gan_leak").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    modules = {path.stem for path in (ROOT / "gan_leak").glob("*.py")} - {"__init__"}
    assert folders | modules == {*RANKS, "reports"}


@pytest.mark.parametrize("path", MODULES, ids=MODULES.values())
def test_no_import_runs_upwards(path):
    room = room_of(MODULES[path])
    for imported in imports_of(path):
        assert imported.startswith("gan_leak"), f"{MODULES[path]} imports {imported}"
        if room == "reports":
            assert room_of(imported) in BELOW_REPORTS or imported in RESULTS, f"{MODULES[path]} imports {imported}"
        else:
            # The package itself holds the version only, and imports nothing by itself.
            rank = RANKS[room_of(imported)] if imported != "gan_leak" else 0
            assert rank <= RANKS[room], f"{MODULES[path]} imports {imported}"


def test_result_modules_hold_data_and_import_neither_runs_nor_reports():
    for name in RESULTS:
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        assert {room_of(imported) for imported in imports_of(path)} <= {"config"}
