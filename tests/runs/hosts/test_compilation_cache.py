"""Compiled programs are kept where the user says, shared with processes that are started, and never in the way."""

import os
import subprocess
import sys

import jax
import pytest

from gan_leak.runs.hosts import compilation_cache as programs
from gan_leak.runs.hosts.compilation_cache import keep_compiled_programs

NAMES = [name.lower() for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", *programs._SETTINGS)]


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """JAX as it is without a cache, and as the session has it again afterwards."""
    before = {name: jax.config.values[name] for name in NAMES}
    for name in NAMES:
        # Set before it is deleted, so that whatever the test sets is undone.
        monkeypatch.setenv(name.upper(), "")
        monkeypatch.delenv(name.upper())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda name: jax.config.values[name]
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_default_is_the_users_cache_directory_for_processors_of_this_kind(settings, tmp_path, monkeypatch):
    keep_compiled_programs()
    first = settings("jax_compilation_cache_dir")
    assert first.startswith(str(tmp_path / "user" / "gan_leak" / "programs"))
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == first
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(programs, "_processor_lines", lambda: ["flags : another processor"])
    keep_compiled_programs()
    assert settings("jax_compilation_cache_dir") != first


def test_a_cache_that_jax_was_told_of_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    keep_compiled_programs()
    assert settings("jax_compilation_cache_dir") == str(tmp_path / "own")


def test_a_given_directory_comes_before_all_others(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    keep_compiled_programs(str(tmp_path / "given"))
    assert settings("jax_compilation_cache_dir") == str(tmp_path / "given")


def test_off_is_off(settings):
    keep_compiled_programs("off")
    assert settings("jax_enable_compilation_cache") is False
    assert settings("jax_compilation_cache_dir") is None


def test_a_given_directory_counts_where_the_cache_was_off(settings, tmp_path):
    keep_compiled_programs("off")
    keep_compiled_programs(str(tmp_path / "given"))
    assert settings("jax_enable_compilation_cache") is True


def test_a_directory_that_cannot_be_written_is_refused_and_the_default_done_without(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"compilation_cache=.*file/inside: expected a directory"):
        keep_compiled_programs(str(tmp_path / "file" / "inside"))
    (tmp_path / "user").write_text("")
    keep_compiled_programs()
    assert settings("jax_compilation_cache_dir") is None


def test_a_second_process_compiles_nothing_anew(settings, tmp_path):
    """What the first process left is all that the second needs, and both know of it from this one."""
    keep_compiled_programs(str(tmp_path / "given"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    code = "import jax; print(float(jax.jit(lambda x: x * 3 + 1)(2.0)))"
    kept = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "7.0\n"
        kept.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "given").glob("*-cache")})
    assert kept[0]
    assert kept[0] == kept[1]
