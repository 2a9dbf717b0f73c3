"""The examples in docstrings run as they stand, and every public function has one."""

import ast
import doctest
import importlib
import inspect
import pathlib
import re

import pytest

import gan_leak

ROOT = pathlib.Path(gan_leak.__file__).parents[1]


def modules_with_examples():
    paths = [path for path in (ROOT / "gan_leak").rglob("*.py") if ">>> " in path.read_text()]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)


def names_in(source):
    """Names, and attributes as of ``gan_leak.load``."""
    nodes = list(ast.walk(ast.parse(source)))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(name, capsys):
    """Without a warning, since warnings are errors in tests."""
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed, capsys.readouterr().out


def test_every_public_function_is_used_in_an_example():
    """In a docstring or in the README."""
    sources = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for name in modules_with_examples():
        for test in doctest.DocTestFinder().find(importlib.import_module(name)):
            sources += [example.source for example in test.examples]
    used = set().union(*map(names_in, sources))
    functions = {name for name in gan_leak.__all__ if inspect.isfunction(getattr(gan_leak, name))}
    assert functions <= used
