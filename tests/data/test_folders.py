"""Class folders: numbers in their order, system files told and skipped, nothing that is lost or waited for."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from gan_leak.data import folders, load
from gan_leak.data.sources import load_class_names


def fill(folder, *names, count=5, grey=None):
    """Sub-folders of pictures whose grey level is ten times their place, unless given."""
    for place, name in enumerate(names):
        os.makedirs(os.path.join(os.fsencode(folder), os.fsencode(name)), exist_ok=True)
        for index in range(count):
            level = 10 * place if grey is None else grey
            Image.new("L", (8, 8), level).save(os.path.join(os.fsencode(folder), os.fsencode(name), b"%d.png" % index))


def test_folders_of_numbers_are_in_the_order_of_their_numbers(tmp_path):
    names = [str(number) for number in range(12)]
    fill(tmp_path, *names)
    dataset = load(f"folder:{tmp_path}")
    assert dataset.class_names == load_class_names(f"folder:{tmp_path}") == tuple(names)
    # What is in folder 10 is of class 10.
    for label in range(12):
        assert set(dataset.train_images[dataset.train_labels == label][:, 16, 16, 0].tolist()) == {10 * label}
    assert dataset.notes == ()


def test_names_that_are_no_utf8_are_escaped_everywhere(tmp_path):
    fill(tmp_path, b"caf\xe9", b"b\nc", "犬")
    dataset = load(f"folder:{tmp_path}")
    assert dataset.class_names == ("b\\nc", "caf\\xe9", "犬")
    "".join(dataset.class_names).encode()


def test_names_that_look_alike_are_refused(refuses, tmp_path):
    fill(tmp_path, b"caf\xe9", b"caf\\xe9")
    refuses(f"folder:{tmp_path}", "has 2 folders that are shown as caf\\xe9")


def test_what_systems_leave_is_skipped_and_told(tmp_path):
    fill(tmp_path, "a", "b")
    clean = load(f"folder:{tmp_path}")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        (tmp_path / "a" / name).write_bytes(b"not a picture")
    (tmp_path / "b" / "masks").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "README.txt").write_text("not a class")
    dataset = load(f"folder:{tmp_path}")
    assert dataset.fingerprint == clean.fingerprint
    assert dataset.class_names == ("a", "b")
    (note,) = dataset.notes
    assert note.startswith(f"dataset=folder:{tmp_path}: skipped 7 entries beside the images of the classes, such as")
    assert note.endswith(str(tmp_path / "__MACOSX"))
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "b" / "masks").rmdir()
    (tmp_path / "__MACOSX").rmdir()
    assert (
        load(f"folder:{tmp_path}")
        .notes[0]
        .endswith(f"skipped 1 entry beside the images of the classes, such as {tmp_path / 'README.txt'}")
    )


@pytest.mark.parametrize("place", ["a/5.png", "c"])
def test_a_link_to_nothing_is_refused(refuses, tmp_path, place):
    fill(tmp_path, "a", "b")
    (tmp_path / place).symlink_to(tmp_path / "gone")
    refuses(f"folder:{tmp_path}", str(tmp_path / place), "is a link to nothing")
    (tmp_path / place).unlink()
    (tmp_path / place).symlink_to(tmp_path / place)
    refuses(f"folder:{tmp_path}", str(tmp_path / place), "is a link to nothing")


def test_links_to_pictures_and_folders_count(tmp_path):
    fill(tmp_path / "far", "x", grey=70)
    fill(tmp_path / "near", "a")
    (tmp_path / "near" / "b").symlink_to(tmp_path / "far" / "x")
    (tmp_path / "near" / "a" / "5.png").symlink_to(tmp_path / "far" / "x" / "0.png")
    dataset = load(f"folder:{tmp_path / 'near'}")
    assert dataset.class_names == ("a", "b")
    assert len(dataset.train_labels) + len(dataset.test_labels) == 11


@pytest.mark.parametrize("place", ["a/5.png", "c"])
def test_a_pipe_is_refused_at_once(refuses, tmp_path, place):
    fill(tmp_path, "a", "b")
    os.mkfifo(tmp_path / place)
    refuses(f"folder:{tmp_path}", str(tmp_path / place), "is a pipe, expected a file or a folder")


def test_a_picture_of_more_pixels_than_pillow_finds_safe_is_refused(refuses, tmp_path, monkeypatch):
    fill(tmp_path, "a")
    large = tmp_path / "a" / "large.png"
    Image.new("L", (100, 100)).save(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    with warnings.catch_warnings():
        # As it is for users, who would only be warned of it.
        warnings.simplefilter("default")
        refuses(f"folder:{tmp_path}", "cannot read the image", str(large), "DecompressionBombWarning")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
        refuses(f"folder:{tmp_path}", "cannot read the image", str(large), "DecompressionBombError")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        load(f"folder:{tmp_path}")


def test_no_other_program_draws_a_picture(refuses, tmp_path):
    fill(tmp_path, "a")
    script = tmp_path / "a" / "loop.eps"
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n%%EOF\n")
    refuses(f"folder:{tmp_path}", str(script), "format EPS, expected pixels")


def test_more_pictures_than_memory_are_refused_before_any_is_read(refuses, tmp_path, monkeypatch):
    fill(tmp_path, "a", "b")
    monkeypatch.setattr("gan_leak.data.sources.read_picture", lambda file: pytest.fail("read"))
    monkeypatch.setattr("gan_leak.machine.usable_memory", lambda: 2 * 10 * 5 * 32**2 - 1)
    refuses(f"folder:{tmp_path}", "10 images need", "expected at most")


def test_a_folder_with_system_files_only_has_no_images(refuses, tmp_path):
    fill(tmp_path, "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"")
    refuses(f"folder:{tmp_path}", "b holds no images")


def test_class_names_are_those_of_the_data_set(tmp_path):
    assert load_class_names("mnist") == load("mnist").class_names
    assert load_class_names("orl_faces") == load("orl_faces").class_names
    np.savez(tmp_path / "a.npz", images=np.zeros((15, 8, 8), np.uint8), labels=np.arange(15) % 3)
    name = f"npz:{tmp_path / 'a.npz'}"
    assert load_class_names(name) == load(name).class_names == ("0", "1", "2")
    np.savez(tmp_path / "a.npz", labels=np.array([0, 2**62]))
    with pytest.raises(ValueError, match=r"expected 0\.\.K-1"):
        load_class_names(name)
    np.savez(tmp_path / "a.npz", images=np.zeros((15, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="labels is missing"):
        load_class_names(name)


@pytest.mark.parametrize("name", ["npz:~nosuchuser/x.npz", "folder:~nosuchuser/x"])
def test_the_home_of_a_user_that_is_not_there_is_refused(refuses, name):
    refuses(name, "expected a user who has a home directory")


def test_home_directories_are_found(tmp_path, monkeypatch):
    fill(tmp_path / "pictures", "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("folder:~/pictures").class_names == ("a",)


def test_the_files_of_a_class_are_sorted_by_text_as_the_split_needs_them(tmp_path):
    fill(tmp_path, "a", count=12)
    (folder,), _ = folders.list_classes(tmp_path)
    assert [path.name for path in folder.files][:4] == ["0.png", "1.png", "10.png", "11.png"]


def fill_owners(folder, owners_by_class, count=5):
    """Pictures class/owner/number.png, whose gray level tells class and owner."""
    for place, (name, owners) in enumerate(owners_by_class.items()):
        for owner in owners:
            fill(folder / name, owner, count=count, grey=100 * place + int(owner.removeprefix("p")))


def test_a_second_level_of_folders_is_the_owner(tmp_path):
    fill_owners(tmp_path, {"ox": ["p2", "p10"], "cat": ["p10", "p1", "p2"]})
    (tmp_path / "ox" / "p2" / "Thumbs.db").write_bytes(b"not a picture")
    (tmp_path / "ox" / "p2" / "masks").mkdir()
    dataset = load(f"folder:{tmp_path}")
    assert dataset.class_names == load_class_names(f"folder:{tmp_path}") == ("cat", "ox")
    # Owners are p1, p2 and p10 in natural order, the same in both classes.
    numbers = {1: 0, 2: 1, 10: 2}
    for images, labels, owners in (
        (dataset.train_images, dataset.train_labels, dataset.train_owners),
        (dataset.test_images, dataset.test_labels, dataset.test_owners),
    ):
        assert owners.dtype == np.int64
        levels = images[:, 16, 16, 0].astype(int)
        # 'ox' was written first, so its pictures have levels below 100.
        np.testing.assert_array_equal(labels, (levels < 100).astype(int))
        assert owners.tolist() == [numbers[level % 100] for level in levels]
    assert len(dataset.train_owners) + len(dataset.test_owners) == 25
    (note,) = dataset.notes
    assert "skipped 2 entries" in note


def test_one_level_of_folders_has_no_owners_and_its_fingerprint_stays(tmp_path):
    fill(tmp_path, "a", "b")
    (tmp_path / "b" / "masks").mkdir()
    dataset = load(f"folder:{tmp_path}")
    assert dataset.train_owners is dataset.test_owners is None
    # As before folders could have owners.
    assert dataset.fingerprint == "fdf2337a5edb1e2fa33f9436a957223d41e0b151a952f66314b7e44743d85b0f"


def test_unsuitable_folders_of_owners_are_refused(refuses, tmp_path):
    fill_owners(tmp_path, {"a": ["p1", "p2"]})
    fill(tmp_path, "b")
    refuses(
        f"folder:{tmp_path}",
        f"{tmp_path / 'a'} holds folders and {tmp_path / 'b'} holds images, expected images in each",
    )
    fill_owners(tmp_path / "other", {"a": ["p1", "p2"]})
    (tmp_path / "other" / "a" / "p3").mkdir()
    refuses(f"folder:{tmp_path / 'other'}", f"{tmp_path / 'other' / 'a' / 'p3'} holds no images")
    fill(tmp_path / "alike" / "a", b"caf\xe9", b"caf\\xe9")
    refuses(f"folder:{tmp_path / 'alike'}", "has 2 folders that are shown as caf\\xe9")
