"""An installed wheel works outside the checkout: the library, the binaries, their presets and the bundled data."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("gan_leak", "experiments")
# Pages and pictures are read in the repository.
NOT_SHIPPED = {"guides", "pictures", "results"}


def run(*command, cwd, status=0):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources: a build would leave folders beside them, and take in what it finds there."""
    sources, wheels = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(wheels), str(sources)]
    result = subprocess.run(build, capture_output=True, text=True, timeout=600)
    if "No matching distribution found for setuptools" in result.stderr:
        pytest.skip("a build needs setuptools from a package index, which cannot be reached")
    assert result.returncode == 0, result.stderr
    (path,) = wheels.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of a new environment with the wheel, which borrows all other packages from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names has its packages imported, but not its own .pth files read: no editable install.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.mark.slow
def test_a_wheel_holds_all_sources_and_presets(wheel):
    def is_shipped(path):
        return path.is_file() and "__pycache__" not in path.parts and not NOT_SHIPPED & set(path.parts)

    files = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*")]
    expected = {str(path) for path in files if is_shipped(ROOT / path)}
    held = set(zipfile.ZipFile(wheel).namelist())
    needed = {"gan_leak/py.typed", "experiments/presets/hitaj/default.flags", "experiments/presets/hitaj/claims.toml"}
    assert needed <= expected
    assert {name for name in held if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_the_library_is_found_outside_the_checkout(installed, tmp_path):
    """With its names, presets and bundled data, and from the wheel."""
    script = """
import gan_leak, experiments
from experiments.common.flags import preset_text
print(gan_leak.__file__, experiments.__file__)
print(preset_text("default").count("--"), gan_leak.load("mnist").train_images.shape[0])
from gan_leak import *
"""
    places, counts = run(installed, "-c", script, cwd=tmp_path).stdout.splitlines()
    environment = installed.parents[1]
    assert all(pathlib.Path(place).is_relative_to(environment) for place in places.split())
    assert [int(count) > 0 for count in counts.split()] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("binary", ["gan_attack", "gradient_inversion", "reproduce"])
def test_binaries_start_outside_the_checkout(installed, tmp_path, binary):
    assert "--workdir" in run(installed, "-m", f"experiments.{binary}", "--help", cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_binary_reads_its_presets_outside_the_checkout(installed, tmp_path):
    command = (installed, "-m", "experiments.gan_attack", "--preset=default", "--target_class=77")
    assert "77" in run(*command, cwd=tmp_path, status=2).stderr.splitlines()[-1]
