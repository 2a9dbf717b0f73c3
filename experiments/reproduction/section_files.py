"""Files of the sections of a reproduction: an entry, its pictures, or the reason why a section was not run."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from gan_leak.runs.storage.directory import write_atomic
from gan_leak.runs.storage.integrity import DamagedError, read_file, read_json, sealed_json, set_aside, sha256

_SECTION_NAME = "section.json"
_ERROR_NAME = "error.json"
_SECTION_FIELDS = ("entry", "captions", "judges", "basis")
_ERROR_FIELDS = ("figure", "title", "claim", "error")
_DIGESTS = "pictures_sha256"


class Section(NamedTuple):
    """A section of a reproduction.

    entry: as in results.json. judges: its judges by data set. pictures: PNG bytes by caption. basis: all inputs of the
    section as text; empty for a section that was not run, whose entry has the reason.
    """

    entry: dict[str, Any]
    judges: dict[str, Any]
    pictures: dict[str, bytes]
    basis: str


def write_section(path: pathlib.Path, section: Section) -> None:
    """Write a finished section into its own folder."""
    path.mkdir(parents=True, exist_ok=True)
    for place, png in enumerate(section.pictures.values()):
        write_atomic(path / f"{place}.png", png)
    kept = {
        "entry": section.entry,
        "captions": list(section.pictures),
        "judges": section.judges,
        "basis": section.basis,
        _DIGESTS: [sha256(png) for png in section.pictures.values()],
    }
    # Written last: its presence means that the section is finished.
    write_atomic(path / _SECTION_NAME, sealed_json(_SECTION_NAME, kept))


def write_error(path: pathlib.Path, entry: dict[str, Any]) -> None:
    """Write the entry of a section that was not run."""
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / _ERROR_NAME, sealed_json(_ERROR_NAME, entry))


def read_section(path: pathlib.Path) -> Section | None:
    """The section in a folder, or the reason why it was not run; None if there is neither. Raises ``DamagedError``."""
    if os.path.lexists(path / _SECTION_NAME):
        kept, sealed = read_json(path / _SECTION_NAME, _SECTION_FIELDS)
        if not kept.keys() >= set(_SECTION_FIELDS) or not isinstance(kept["captions"], list):
            raise DamagedError(f"{path / _SECTION_NAME}: damaged (lacks fields of a section)")
        pictures = [read_file(path / f"{place}.png") for place in range(len(kept["captions"]))]
        if sealed and [sha256(png) for png in pictures] != kept[_DIGESTS]:
            raise DamagedError(f"{path}: damaged (the SHA-256 of a picture is another)")
        named = dict(zip(kept["captions"], pictures, strict=True))
        return Section(kept["entry"], kept["judges"], named, kept["basis"])
    if os.path.lexists(path / _ERROR_NAME):
        entry, _ = read_json(path / _ERROR_NAME, _ERROR_FIELDS)
        if entry.keys() != set(_ERROR_FIELDS):
            raise DamagedError(f"{path / _ERROR_NAME}: damaged (its fields are not those of an error)")
        return Section(entry, {}, {}, "")
    return None


def set_damaged_aside(path: pathlib.Path, say: Callable[[str], None]) -> None:
    """Rename the folder of a section if it is damaged, and report that to ``say``; the section can be run again."""
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise DamagedError(f"{path}: not a folder")
        read_section(path)
    except DamagedError as error:
        say(f"{error}: renamed to {set_aside(path).name}, and made again where it is asked for")
