"""What README.md, the guides and BUILD_NOTES.md show works as shown, and is short enough to be read."""

import pathlib
import re
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.common.flags import PRESETS, config_from_arguments, define_flags, preset_text
from experiments.results import CONFIG_CLASSES, ROOT, ResultsConfig
from gan_leak.runs.inversion.gradient import network_for
from gan_leak.runs.inversion.gradient_files import load_gradient

README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "experiments" / "guides").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "BUILD_NOTES.md", *GUIDES]
LONGEST = {"README.md": 150, "BUILD_NOTES.md": 250}
LONGEST_GUIDE = 80
LONGEST_LINE = 120
TEXT_FILES = (".md", ".toml", ".flags", ".py", ".yml", ".yaml")
# Flags of the processes that share a run; they are no part of a configuration.
OF_PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")
# Flags in the documents that are those of other programs.
OF_OTHERS = {"ntasks-per-node", "worker", "command", "dist", "help"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def commands_in(text):
    """The binary and arguments of every command that an indented block of a document shows."""
    blocks = re.sub(r"\\\n\s+", "", text)
    lines = [line.strip() for line in blocks.splitlines() if line.startswith("    ")]
    for binary, rest in (match for line in lines for match in re.findall(r"-m experiments\.(\w+)(.*)", line)):
        arguments = shlex.split(rest.rstrip('"') if rest.count('"') % 2 else rest, comments=True)
        yield binary, [argument for argument in arguments if argument.lstrip("-").split("=")[0] not in OF_PROCESSES]


def tracked_files():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a checkout of git")
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.slow
def test_the_library_example_ends_in_a_leakage_score():
    """In a process of its own, without the checks of the tests, which would take as long again."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    name, score = line.split(": ")
    assert name == "leakage score"
    assert 0.2 < float(score) <= 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_that_a_document_shows_has_the_flags_of_its_binary(path):
    classes = {**CONFIG_CLASSES, "results": ResultsConfig}
    for binary, arguments in commands_in(path.read_text()):
        config_from_arguments(classes[binary], arguments)


def test_commands_are_found_in_the_documents():
    """So that the test above does not pass for want of commands."""
    found = {binary for path in DOCUMENTS for binary, _ in commands_in(path.read_text())}
    assert found == {*CONFIG_CLASSES, "results"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_flag_and_preset_that_a_document_names_exists(path):
    text = path.read_text()
    # The numbers of a defense become flags, those of an example too.
    known = {*OF_PROCESSES, *OF_OTHERS, *re.findall(r'HyperParameter\(\s*"(\w+)"', text)}
    for config_class in (*CONFIG_CLASSES.values(), ResultsConfig):
        flag_values = absl_flags.FlagValues()
        define_flags(config_class, flag_values)
        known |= set(flag_values)
    assert set(re.findall(r"--([a-z][a-z0-9_.-]*\w)", text)) <= known
    for preset in re.findall(r"--preset=([a-z0-9_/]+)", text):
        assert preset_text(preset)


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "experiments" / "results").glob("*.md"))], ids=name_of)
def test_every_file_that_a_document_links_to_exists(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_document_is_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST.get(path.name, LONGEST_GUIDE)


def test_no_line_of_a_text_file_is_longer_than_120_characters():
    files = [path for path in tracked_files() if path.suffix in TEXT_FILES and path.exists()]
    long = [
        f"{name_of(path)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > LONGEST_LINE
    ]
    assert not long


def test_numbers_in_the_tables_of_the_readme_are_generated():
    """Tables under a marker are what their JSON gives (test_results.py); other tables hold no numbers but years."""
    rest = re.sub(r"<!-- results/.* -->\n(\|.*\n)+", "", README)
    assert rest != README
    numbers = [number for line in rest.splitlines() if line.startswith("|") for number in re.findall(r"\d+", line)]
    of_names = {"5", "32", "1"}  # --figures=5; float32 and the range [-1, 1] of a file's content
    assert {number for number in numbers if not re.fullmatch(r"(19|20)\d\d", number)} <= of_names


def test_the_code_that_saves_a_gradient_of_pytorch_writes_what_the_attack_reads(tmp_path):
    """A stand-in for a module of PyTorch, whose parameters have the axes that PyTorch gives them."""
    text = (ROOT / "experiments" / "guides" / "attack_a_gradient.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(compile(code, "attack_a_gradient.md", "exec"), names)
    rng = np.random.default_rng(0)
    shapes = [(12, 3, 5, 5), (12,), (12, 12, 5, 5), (12,), (12, 12, 5, 5), (12,), (10, 768), (10,)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def tensor(array):
        own = types.SimpleNamespace(numpy=lambda: array)
        return types.SimpleNamespace(detach=lambda: own, grad=own)

    names["save_gradient"](tmp_path / "mine.npz", types.SimpleNamespace(parameters=lambda: map(tensor, arrays)))
    model = network_for("dlg_lenet", "wide", num_classes=10, image_size=32, channels=3)
    brought = load_gradient(
        tmp_path / "mine.npz", model, "dlg_lenet", batch_size=1, num_classes=10, flatten_order="hwc"
    )
    assert brought.labels is None


def test_every_preset_is_headed_by_the_command_that_runs_it():
    for path in sorted(PRESETS.rglob("*.flags")):
        (binary, arguments), *_ = commands_in("    " + path.read_text().splitlines()[0].removeprefix("# "))
        assert {f"--preset={path.stem}", f"--preset={path.parent.name}/{path.stem}"} & set(arguments)
        config_from_arguments(CONFIG_CLASSES[binary], arguments)


def test_a_preset_names_the_page_of_its_results_and_repeats_nothing_of_it():
    """A number that is written twice is soon that of an earlier version."""
    for path in PRESETS.rglob("*.flags"):
        comments = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        assert not re.search(r"Measured|\d\.\d+ \(\d", comments), path
        for page in re.findall(r"experiments/results/\w+\.\w+", comments):
            assert (ROOT / page).is_file(), path


def test_guides_are_the_ones_that_the_readme_names():
    assert {pathlib.Path(name).name for name in re.findall(r"guides/(\w+\.md)", README)} == {
        path.name for path in GUIDES
    }
