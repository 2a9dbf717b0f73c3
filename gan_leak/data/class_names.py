"""Classes by number or by name: their order, printable names, and the class that a user's text means."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_SHOWN_NAMES = 12
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key that compares digits within names as numbers: 'c2' before 'c10'; among equals '01' before '1'."""
    # re.split alternates text and digits, so text is only compared with text.
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def shown(name: str) -> str:
    """A printable form of a name: bytes that are not UTF-8 and control characters become escapes."""
    return "".join(char if char.isprintable() else _escape(char) for char in name)


def _escape(char: str) -> str:
    # Python represents a byte of a file name that is not UTF-8 in this range.
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class ClassLookup(NamedTuple):
    """The class names of a data set in order, and the class numbers by name, as text and as integer."""

    names: tuple[str, ...]
    by_name: Mapping[str, frozenset[int]]
    by_number: Mapping[int, frozenset[int]]


def make_lookup(names: Sequence[str]) -> ClassLookup:
    """The lookup for class names in the order of their numbers."""
    by_name: dict[str, frozenset[int]] = {}
    by_number: dict[int, frozenset[int]] = {}
    for number, name in enumerate(names):
        text = _comparable(name)
        by_name[text] = by_name.get(text, frozenset()) | {number}
        if _NUMBER.fullmatch(text):
            by_number[int(text)] = by_number.get(int(text), frozenset()) | {number}
    return ClassLookup(tuple(names), by_name, by_number)


def find_class(lookup: ClassLookup, text: str) -> int:
    """The number of the class that a text means: by its number from 0, or by its name.

    'index:3' is only a number and 'name:3' only a name. A number that is also the name of a class, or that name with
    leading zeros, must mean the same class both ways. Names are compared in Unicode's composed form.

    Raises ValueError, which begins with the text, if it means no class or more than one.
    """
    kind, colon, rest = text.strip().partition(":")
    found = set(lookup.by_name.get(_comparable(text), ())) | set(lookup.by_name.get(_comparable(text.strip()), ()))
    if colon and kind == "name":
        found |= lookup.by_name.get(_comparable(rest), frozenset())
    elif colon and kind == "index" and _NUMBER.fullmatch(rest.strip()):
        found.add(int(rest))
    elif _NUMBER.fullmatch(text.strip()):
        found |= {int(text)} | lookup.by_number.get(int(text), frozenset())
    classes = len(lookup.names)
    if len(found) > 1:
        raise ValueError(f"{shown(text)}: {_readings(lookup, found)}")
    if not found or min(found) >= classes:
        some = ", ".join(lookup.names[:_SHOWN_NAMES]) + (", ..." if classes > _SHOWN_NAMES else "")
        raise ValueError(f"{shown(text)}: expected 0 to {classes - 1}, or the name of a class ({some})")
    return min(found)


def find_range(lookup: ClassLookup, text: str) -> list[int] | None:
    """The numbers of a range 'a-b' of classes, both ends included; None for a text that is not a range.

    'index:a-b' is a range of numbers for all names. Raises ValueError, which begins with the text, for ends that are
    out of order or not classes, and if a number in the range is the name of another class.
    """
    match = re.fullmatch(r"\s*(index:)?\s*(\d{1,9})\s*-\s*(\d{1,9})\s*", text, re.ASCII)
    if match is None:
        return None
    if _comparable(text.strip()) in lookup.by_name:
        raise ValueError(f"{text.strip()}: a range and the name of a class; expected name:{text.strip()} or numbers")
    first, last = int(match[2]), int(match[3])
    if not first <= last < len(lookup.names):
        raise ValueError(f"{text.strip()}: expected classes in increasing order within 0..{len(lookup.names) - 1}")
    numbers = list(range(first, last + 1))
    for number in numbers if match[1] is None else ():
        if other := lookup.by_number.get(number, frozenset()) - {number}:
            raise ValueError(f"{text.strip()}: {number}: {_readings(lookup, {number} | other)}")
    return numbers


def _readings(lookup: ClassLookup, found: set[int]) -> str:
    known = [f"index:{number} ({lookup.names[number]})" for number in sorted(found) if number < len(lookup.names)]
    return f"a number and the name of another class; expected {' or '.join(known)}"


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", shown(name))
