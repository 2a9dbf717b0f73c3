"""Claims of presets and the criteria of their reproduction, read strictly from ``claims.toml`` beside the presets."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.common.flags import preset_path
from gan_leak.evaluation.criteria import Criterion, parse_criterion

CLAIMS_NAME = "claims.toml"
_REQUIRED = ("claim", "reproduced_if", "partly_if")
_SHORT = ("quick", "not_quick")
_KNOWN = (*_REQUIRED, *_SHORT, "nearest")


class Claim(NamedTuple):
    """The claim of a preset, written before any run.

    claim: the paper's claim in our words. reproduced_if, partly_if: the criteria of its verdict.
    quick: the last preset of a short run, or empty.
    not_quick: why a short run leaves the setting out, or empty.
    nearest: the preset after this one for the nearest setting that works, or empty.
    """

    claim: str
    reproduced_if: Criterion
    partly_if: Criterion
    quick: str = ""
    not_quick: str = ""
    nearest: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the numbers in the criteria."""
        return (*self.reproduced_if.names, *self.partly_if.names)

    @property
    def texts(self) -> list[str]:
        """All inputs of a verdict beside the numbers: the texts of claim and criteria."""
        return [self.claim, self.reproduced_if.text, self.partly_if.text]


def read_claim(preset: str) -> Claim:
    """Read the claim of a preset from the ``claims.toml`` in its folder.

    Raises ValueError, in one line, for an unknown preset and for one without a claim. Also for a file with an entry of
    no preset in its folder, a missing or unknown key, both of ``quick`` and ``not_quick``, or an invalid criterion.
    """
    path = preset_path(preset)
    file = path.with_name(CLAIMS_NAME)
    known = frozenset(found.stem for found in path.parent.glob("*.flags"))
    claims = parse_claims(file.read_text(encoding="utf-8") if file.is_file() else "", str(file), known)
    if path.stem not in claims:
        raise ValueError(f"preset={preset}: expected an entry [{path.stem}] in {file}")
    return claims[path.stem]


@functools.cache
def parse_claims(text: str, where: str, presets: frozenset[str]) -> Mapping[str, Claim]:
    """Parse the text of a ``claims.toml``: claims by preset.

    where: the file, for errors. presets: the names of presets that may have a claim. Raises ValueError as
    ``read_claim`` does.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: expected TOML, {error}") from None
    return {preset: _parse_claim(f"{where}: [{preset}]", preset, table, presets) for preset, table in tables.items()}


def _parse_claim(where: str, preset: str, table: Any, presets: frozenset[str]) -> Claim:
    if preset not in presets:
        raise ValueError(f"{where}: unknown preset, expected one of {', '.join(sorted(presets))}")
    if not isinstance(table, dict):
        raise ValueError(f"{where}: expected a table")
    for key in table:
        if key not in _KNOWN:
            raise ValueError(f"{where}: unknown key {key}, expected {', '.join(_KNOWN)}")
    for key in _REQUIRED:
        if key not in table:
            raise ValueError(f"{where}: key {key} is missing")
    if sum(key in table for key in _SHORT) != 1:
        raise ValueError(f"{where}: expected one of the keys {' and '.join(_SHORT)}")
    for key, value in table.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {key}={value!r}: expected a text")
    try:
        criteria = parse_criterion(table["reproduced_if"]), parse_criterion(table["partly_if"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Claim(table["claim"], *criteria, *(table.get(key, "") for key in (*_SHORT, "nearest")))


def settings_at(settings: Mapping[str, str], scale: str) -> dict[str, str]:
    """The settings that a scale runs: all of them, or those that a short run can decide. settings: presets by label."""
    return {label: preset for label, preset in settings.items() if scale != "quick" or read_claim(preset).quick}


def left_out(settings: Mapping[str, str], scale: str) -> dict[str, str]:
    """The settings that a scale leaves out, each with the reason as a sentence."""
    run = settings_at(settings, scale)
    return {label: read_claim(preset).not_quick for label, preset in settings.items() if label not in run}


def rows_named_by(claim: Claim) -> set[str]:
    """The names of other rows in the criteria of a claim."""
    return {name.split(".")[0] for name in claim.names if name.count(".") > 1}
