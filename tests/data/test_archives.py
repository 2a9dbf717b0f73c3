"""npz files are judged by their headers: a bomb, a liar or a pipe is refused before anything is unpacked."""

import io
import os
import pathlib
import socket
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from gan_leak.data import archives, load, read_archive

ROOT = pathlib.Path(__file__).parents[2]


def header_of(shape, dtype="|u1", version=(1, 0)):
    file = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    writer = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version]
    writer(file, fields)
    return file.getvalue()


def write_zip(path, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def write_bomb(path, shape, dtype="|u1"):
    """An array of zeros, written piece by piece."""
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    piece = bytes(2**24)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            file.write(header_of(shape, dtype))
            for start in range(0, size, len(piece)):
                file.write(piece[: size - start])
        with archive.open("labels.npy", "w") as file:
            np.lib.format.write_array(file, np.arange(shape[0]) % 2)
    return path


def test_arrays_of_all_kinds_come_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(3), "c": np.zeros((0, 4)), "d": np.array([True])}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        read = read_archive(tmp_path / "a.npz")
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == np.asarray(array).dtype
        assert read_archive(tmp_path / "a.npz", {"b", "other"}).keys() == {"b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header_of((3,)) + bytes(2), "its header says"),
        (header_of((3,)) + bytes(4), "its header says"),
        (header_of((10**15,)), "its header says"),
        (header_of((-3, -1)) + bytes(3), "unknown dimension"),
        (header_of((3,), "|O") + bytes(3), "pickled objects"),
        (b"\x93NUMPY\x07\x00" + bytes(200), "format"),
        (b"nothing of the kind", "magic"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(10**6), "header"),
        (b"", "magic"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_archive(write_zip(tmp_path / "a.npz", x=content))


def test_an_array_whose_bytes_are_not_those_of_the_directory_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, x=header_of((1000,)) + bytes(1000))
    damaged = bytearray(path.read_bytes())
    # The expanded size, in the directory at the end and before the data.
    size = (1000 + len(header_of((1000,)))).to_bytes(4, "little")
    assert damaged.count(size) == 2
    shorter = (500 + len(header_of((500,)))).to_bytes(4, "little")
    path.write_bytes(bytes(damaged).replace(size, shorter))
    with pytest.raises(ValueError, match=r"Bad CRC-32|its header says"):
        read_archive(path)


def test_names_that_are_no_arrays_and_names_that_are_there_twice_are_refused(tmp_path):
    good = header_of((3,)) + bytes(3)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", good)
    with pytest.raises(ValueError, match="'images' is no array"):
        read_archive(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("images.npy", good)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("images.npy", good)
    with pytest.raises(ValueError, match=r"images\.npy is there twice"):
        read_archive(tmp_path / "b.npz")


def test_what_does_not_fit_into_memory_is_refused_by_its_header(tmp_path, monkeypatch):
    """Half of the memory has to hold the arrays and a float32 copy of them."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(1000, np.int8))
    for memory, fits in ((10_001, True), (9_999, False)):
        monkeypatch.setattr("gan_leak.machine.usable_memory", lambda memory=memory: memory)
        monkeypatch.setattr(archives.np.lib.format, "read_array", lambda *a, **k: "unpacked")
        if fits:
            assert read_archive(path) == {"x": "unpacked"}
        else:
            with pytest.raises(ValueError, match="expected at most"):
                read_archive(path)


def test_an_archive_of_next_to_nothing_but_one_value_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, np.uint8))
    assert read_archive(tmp_path / "a.npz")["x"].shape == (100_000,)
    monkeypatch.setattr(archives, "_HARMLESS_BYTES", 99_999)
    with pytest.raises(ValueError, match="expected at most 100 times as much"):
        read_archive(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros(100_000, np.uint8))
    assert read_archive(tmp_path / "b.npz")["x"].shape == (100_000,)


SPECIAL = {"pipe": "a pipe", "folder": "a folder", "device": "a device", "socket": "a socket", "link": "a pipe"}


@pytest.fixture
def special(tmp_path):
    """Makes a file of a kind that must not be opened."""
    open_sockets = []

    def make(kind):
        path = tmp_path / "special.npz"
        if kind == "device":
            return pathlib.Path("/dev/zero")
        if kind == "folder":
            path.mkdir()
        elif kind == "socket":
            bound = socket.socket(socket.AF_UNIX)
            open_sockets.append(bound)
            bound.bind(str(path))
        else:
            os.mkfifo(tmp_path / "pipe" if kind == "link" else path)
            if kind == "link":
                path.symlink_to(tmp_path / "pipe")
        return path

    yield make
    for bound in open_sockets:
        bound.close()


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_files_are_opened(refuses, special, kind):
    path = special(kind)
    outcome = []

    def attempt():
        with pytest.raises(ValueError, match=SPECIAL[kind]):
            read_archive(path)
        refuses(f"npz:{path}", "cannot read", SPECIAL[kind])
        outcome.append("refused")

    # In a thread, since what opens a pipe waits for good.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(30)
    assert outcome == ["refused"]


def in_little_memory(path, megabytes=400):
    """What loading says, in a process that may take only so much more memory than it has after its imports."""
    code = f"""
import re, resource, sys
from gan_leak.data import load
import PIL.Image
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (used + {megabytes} * 2**20,) * 2)
try:
    load(sys.argv[1])
except ValueError as error:
    print(error)
print("MB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    message, megabytes = done.stdout.rsplit("MB", 1)
    assert message.count("\n") == 1
    return message, int(megabytes)


@pytest.mark.parametrize("largest", [2**62, 2**63 - 1, 10**9])
def test_a_huge_label_makes_no_names(tmp_path, largest):
    np.savez(tmp_path / "a.npz", images=np.zeros((10, 8, 8), np.uint8), labels=np.array([0, 1] * 4 + [2, largest]))
    message, megabytes = in_little_memory(f"npz:{tmp_path / 'a.npz'}")
    assert f"from 0 to {largest}, expected 0..K-1" in message
    assert megabytes < 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1_200_000, 32, 32), "|u1", "its images need at least 7.4 GB of memory"),
        ((150, 32, 32, 1000), "<f8", "images are float64 [150, 32, 32, 1000]"),
    ],
)
def test_an_archive_that_expands_to_gigabytes_is_not_unpacked(tmp_path, shape, dtype, message):
    path = write_bomb(tmp_path / "bomb.npz", shape, dtype)
    assert path.stat().st_size < 20e6
    message_given, megabytes = in_little_memory(f"npz:{path}")
    assert message in message_given
    assert megabytes < 100


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1] * 4 + [-1, 1]), "from -1 to 1, expected 0..K-1"),
        (np.array([0, 1] * 4 + [0, 3]), "from 0 to 3, expected 0..K-1"),
        (np.array([0, 2**64 - 1] * 5, np.uint64), f"from 0 to {2**64 - 1}, expected 0..K-1"),
        (np.array([False, True] * 5), "labels are bool [10], expected integers"),
        (np.array([0.0, 1.0] * 5), "labels are float64 [10], expected integers"),
        (np.array(["0", "1"] * 5), "labels are <U1 [10], expected integers"),
        (np.array([[0, 1]] * 10), "labels are int64 [10, 2], expected integers"),
        (np.arange(10), "no class has 5 images"),
    ],
)
def test_labels_that_are_no_classes_are_refused(refuses, tmp_path, labels, message):
    np.savez(tmp_path / "a.npz", images=np.zeros((10, 8, 8), np.uint8), labels=labels)
    refuses(f"npz:{tmp_path / 'a.npz'}", message)


def test_more_classes_than_a_network_should_have_are_refused(refuses, tmp_path, monkeypatch):
    monkeypatch.setattr("gan_leak.data.sources.MOST_CLASSES", 3)
    for classes in (3, 4):
        labels = np.arange(40) % classes
        np.savez(tmp_path / f"{classes}.npz", images=np.zeros((40, 8, 8), np.uint8), labels=labels)
    assert load(f"npz:{tmp_path / '3.npz'}").class_names == ("0", "1", "2")
    refuses(f"npz:{tmp_path / '4.npz'}", "labels have 4 values", "at most 3")
