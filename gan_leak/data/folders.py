"""Folders of images with one sub-folder per class or per class and owner: their entries, and how to decode an image."""

from __future__ import annotations

import collections
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gan_leak.data.class_names import natural_key, shown
from gan_leak.files import kind_of, open_regular

# Files that operating systems create in folders, in lower case. Hidden files are skipped as well.
_SYSTEM_NAMES = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx", "@eadir"),
        *("$recycle.bin", "system volume information", "lost+found"),
    }
)
# Pillow starts other programs to draw these.
_PROGRAM_FORMATS = ("EPS", "WMF")
_GRAY_MODES = ("1", "L", "LA", "La")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class ClassFolder(NamedTuple):
    """One class: its printable name, and its files in order.

    owners: the printable name of the owner of each file; empty if the class has no folders of owners.
    """

    name: str
    files: tuple[Path, ...]
    owners: tuple[str, ...] = ()


def list_classes(path: Path) -> tuple[list[ClassFolder], list[str]]:
    """The classes below a folder in natural order of their names, 2 before 10, and the entries that are skipped.

    A class is a folder of images, or a folder of owners, which are folders of images; either all classes have owners or
    none has. System files, hidden files, files beside the classes, and folders beside images are skipped.

    Raises ValueError if ``path`` is not a folder, holds no folder, or holds one without a file; for classes with and
    without owners; for a broken link or a special file; and for two names with the same printed form.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    skipped: list[str] = []
    folders = _sorted_folders(_entries(path, skipped), skipped)
    if not folders:
        raise ValueError(f"{path} has no sub-folders, expected one for each class")
    classes = [_list_class(folder, skipped) for folder in folders]
    _check_different(path, [folder.name for folder in classes])
    with_owners = [bool(folder.owners) for folder in classes]
    if any(with_owners) and not all(with_owners):
        raise ValueError(
            f"{folders[with_owners.index(True)]} holds folders and {folders[with_owners.index(False)]} holds images, "
            "expected images in each class, or in each class a folder of images for each owner"
        )
    return classes, skipped


def _list_class(folder: Path, skipped: list[str]) -> ClassFolder:
    entries = _entries(folder, skipped)
    if any(stat.S_ISREG(mode) for _, mode in entries):
        return ClassFolder(shown(folder.name), _sorted_files(entries, skipped))
    owners = _sorted_folders(entries, skipped)
    if not owners:
        raise ValueError(f"{folder} holds no images, expected at least one in each class")
    _check_different(folder, [shown(owner.name) for owner in owners])
    files: list[Path] = []
    names: list[str] = []
    for owner in owners:
        found = _sorted_files(_entries(owner, skipped), skipped)
        if not found:
            raise ValueError(f"{owner} holds no images, expected at least one of each owner")
        files += found
        names += [shown(owner.name)] * len(found)
    return ClassFolder(shown(folder.name), tuple(files), tuple(names))


def _sorted_folders(entries: list[tuple[Path, int]], skipped: list[str]) -> list[Path]:
    """The folders among the entries in natural order of their names; the others are skipped."""
    folders = [entry for entry, mode in entries if _is_kept(entry, stat.S_ISDIR(mode), skipped)]
    return sorted(folders, key=lambda folder: natural_key(folder.name))


def _sorted_files(entries: list[tuple[Path, int]], skipped: list[str]) -> tuple[Path, ...]:
    """The files among the entries in order of their names as text; the others are skipped."""
    return tuple(sorted(entry for entry, mode in entries if _is_kept(entry, stat.S_ISREG(mode), skipped)))


def _check_different(path: Path, names: list[str]) -> None:
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise ValueError(f"{path} has {count} folders that are shown as {name}, expected different names")


def _entries(folder: Path, skipped: list[str]) -> list[tuple[Path, int]]:
    """The entries of a folder except system files, each with its mode; links are followed."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
            skipped.append(shown(str(entry)))
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            what = "a link to nothing" if entry.is_symlink() else f"not to be read ({error.strerror})"
            raise ValueError(f"{entry} is {what}, expected a file or a folder") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{entry} is {kind_of(mode)}, expected a file or a folder")
        found.append((entry, mode))
    return found


def _is_kept(entry: Path, wanted: bool, skipped: list[str]) -> bool:
    if not wanted:
        skipped.append(shown(str(entry)))
    return wanted


def read_picture(path: Path) -> np.ndarray:
    """An image file as uint8 [H, W, C], with one channel for gray modes and three for others.

    Raises ValueError if it cannot be read, or has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_regular(path) as file, Image.open(file) as opened:
                return _as_array(opened)
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, struct.error, ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"cannot read the image {path} ({reason})") from error


def _as_array(opened: Image.Image) -> np.ndarray:
    if opened.format in _PROGRAM_FORMATS:
        raise ValueError(f"format {opened.format}, expected pixels")
    picture = ImageOps.exif_transpose(opened)
    if picture.mode in _SIXTEEN_BIT_MODES:
        return (np.asarray(picture) >> 8).astype(np.uint8)[..., None]
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixel mode {picture.mode}, expected 8 or 16 bits a channel")
    if picture.mode in _GRAY_MODES:
        return np.asarray(picture.convert("L"))[..., None]
    return np.asarray(picture.convert("RGB"))
