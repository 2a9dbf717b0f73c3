"""Files that notice their own damage: any changed, missing or added byte, and any other content of the same name."""

import json
import os
import pathlib
import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gan_leak.runs.storage import integrity
from gan_leak.runs.storage.directory import npz_bytes, write_atomic
from gan_leak.runs.storage.integrity import DamagedError, read_json, read_npz, sealed_json, sealed_npz

VALUE = {"config": {"rate": 0.1, "name": "\u00e4"}, "list": [1, None, "x"], "zeros": "0" * 64}
ARRAYS = {"images": np.arange(12, dtype=np.float32).reshape(3, 4), "seconds": np.array(0.5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sealed")


def test_an_object_survives_its_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(sealed_json(path.name, VALUE, indent=2))
    assert read_json(path, ()) == (VALUE, True)
    # Other programs read it as any JSON.
    assert {**json.loads(path.read_text()), "sha256": None} == {**VALUE, "sha256": None}


def test_arrays_survive_their_file(tmp_path):
    path = tmp_path / "row.npz"
    path.write_bytes(sealed_npz(path.name, npz_bytes(**ARRAYS)))
    arrays, sealed = read_npz(path)
    assert sealed
    assert list(arrays) == list(ARRAYS)
    for name in ARRAYS:
        np.testing.assert_array_equal(arrays[name], ARRAYS[name])
    # Other programs read it as any npz file.
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["images"], ARRAYS["images"])


SEALED = {
    "config.json": (
        sealed_json("config.json", VALUE, indent=2),
        lambda path: read_json(path, ("config", "list", "zeros")),
    ),
    "row.npz": (sealed_npz("row.npz", npz_bytes(**ARRAYS)), read_npz),
}


@pytest.mark.parametrize("name", SEALED)
def test_every_changed_byte_is_noticed(folder, name):
    data, read = SEALED[name]
    rng = random.Random(0)
    path = folder / name
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
        with pytest.raises(DamagedError, match=name):
            read(path)


@pytest.mark.parametrize("name", SEALED)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=100, deadline=None)
def test_every_missing_or_added_part_is_noticed(folder, name, data):
    whole, read = SEALED[name]
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    added = data.draw(st.binary(max_size=4))
    changed = whole[:begin] + added + whole[end:]
    # Without exactly its digest, a file is one of a version without digests, and its content is intact.
    hypothesis.assume(changed != whole and b"sha256" in changed)
    path = folder / name
    path.write_bytes(changed)
    with pytest.raises(DamagedError, match=name):
        read(path)


def test_a_whole_file_of_another_name_is_noticed(tmp_path):
    for name, (data, read) in SEALED.items():
        path = tmp_path / f"other_{name}"
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=name):
            read(path)


def test_files_without_a_digest_are_read_as_such(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": 1}))
    assert read_json(path, ("config",)) == ({"config": 1}, False)
    with pytest.raises(DamagedError, match="unknown field 'config'"):
        read_json(path, ("other",))
    path = tmp_path / "row.npz"
    path.write_bytes(npz_bytes(**ARRAYS))
    assert not read_npz(path)[1]
    path.write_bytes(npz_bytes(**ARRAYS) + b"more")
    with pytest.raises(DamagedError, match="not a whole npz file"):
        read_npz(path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_object_is_damaged(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"config\.json: damaged"):
        read_json(path, ("a",))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "dangling link"])
def test_what_is_no_file_is_damaged(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    for read in (integrity.read_file, read_npz, lambda path: read_json(path, ())):
        with pytest.raises(DamagedError, match="missing" if kind == "missing" else "not an ordinary file"):
            read(path)


def test_nothing_that_is_set_aside_takes_the_place_of_another(tmp_path):
    for content in ("first", "second", "third"):
        (tmp_path / "row.npz").write_text(content)
        integrity.set_aside(tmp_path / "row.npz")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "row.npz.damaged": "first",
        "row.npz.damaged2": "second",
        "row.npz.damaged3": "third",
    }


def test_only_our_own_temporary_files_are_leftovers(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    # A killed process removes nothing.
    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(pathlib.Path, "unlink", lambda *_, **__: None)
    for folder in ("", "evaluations", "checkpoints", "batches/ab/checkpoints"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / folder / "file.npz", b"torn")
        (tmp_path / folder / ".mine.tmp").touch()
        (tmp_path / folder / "file.0123456789abcdef0123456789abcdef.tmp").touch()
    orbax = "round_000005.orbax-checkpoint-tmp"
    for folder in ("checkpoints", "batches/ab/checkpoints", "evaluations"):
        (tmp_path / folder / orbax).mkdir()
    found = integrity.leftovers(tmp_path)
    assert sorted(path.name for path in found if path.is_dir()) == [orbax] * 2
    assert all(path.parent.name == "checkpoints" for path in found if path.is_dir())
    files = [path for path in found if path.is_file()]
    assert sorted(path.parent.relative_to(tmp_path).as_posix() for path in files) == [
        ".",
        "batches/ab/checkpoints",
        "checkpoints",
        "evaluations",
    ]
    assert all(path.name.startswith(".file.npz.") for path in files)
