"""The front door: every public name is there, typed, explained, and loaded only when it is used."""

import inspect
import pathlib
import subprocess
import sys

import pytest

import gan_leak
from gan_leak import types

ROOT = pathlib.Path(gan_leak.__file__).parents[1]


@pytest.mark.parametrize("name", gan_leak.__all__)
def test_every_public_name_resolves(name):
    """Each to an object of that name, which its docstring explains."""
    value = getattr(gan_leak, name)
    if name == "__version__":
        assert value.count(".") == 2
    else:
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_a_star_import_has_all_of_them():
    names = {}
    exec("from gan_leak import *", names)
    assert set(gan_leak.__all__) <= set(names)
    assert dir(gan_leak) == sorted(gan_leak.__all__)
    assert len(set(gan_leak.__all__)) == len(gan_leak.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'gan_leak' has no attribute 'train_everything'$"):
        _ = gan_leak.train_everything


def test_every_contract_is_public():
    contracts = {name for name, value in vars(types).items() if getattr(value, "__module__", "") == types.__name__}
    assert {"Model", "FederationData", "FederationState", "UploadTransform", "RoundAttack"} <= contracts
    assert contracts <= set(gan_leak.__all__)


def test_importing_the_package_loads_nothing_else():
    """Neither JAX nor NumPy, nor a module of its own."""
    probe = "import sys; before = set(sys.modules); import gan_leak; print(*(set(sys.modules) - before))"
    output = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    ).stdout.split()
    assert [name for name in output if name.partition(".")[0] in ("gan_leak", "jax", "numpy")] == ["gan_leak"]


GOOD_SCRIPT = """
import jax
from gan_leak import FederationState, Model, RoundHyperParameters, classifier_for, init_federation, selective_upload

model: Model = classifier_for(32, num_outputs=11, channels=1)
state: FederationState = init_federation(jax.random.key(0), model, selective_upload("largest"), participants=2)
numbers = RoundHyperParameters(learning_rate=0.1)
"""
BAD_LINES = {
    "selective_upload(1)": "arg-type",
    "classifier_for(32, num_outputs=11)": "call-arg",
    "init_federation(jax.random.key(0), model, model, participants=2)": "arg-type",
    "text: str = numbers": "assignment",
    "from gan_leak import train_everything": "attr-defined",
}


@pytest.mark.slow
def test_a_type_checker_sees_the_public_names(tmp_path):
    """Mypy accepts a user's script and rejects each line that misuses the package."""
    script = tmp_path / "script.py"
    script.write_text(GOOD_SCRIPT + "\n".join(BAD_LINES) + "\n")
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
    )
    first = GOOD_SCRIPT.count("\n") + 1
    errors = [line.removeprefix(f"{script}:") for line in result.stdout.splitlines() if ": error: " in line]
    found = [(int(line.partition(":")[0]), line.rpartition("[")[2].rstrip("]")) for line in errors]
    assert found == [(first + index, code) for index, code in enumerate(BAD_LINES.values())], result.stdout
