"""Claims stand beside the presets, and a file that is not what it should be is refused in one line."""

import pytest

from experiments.common import flags
from experiments.common.flags import PRESETS
from experiments.reproduction.claims import CLAIMS_NAME, parse_claims, read_claim

ENTRY = """
[six]
claim = "It works."
reproduced_if = "leakage_score.mean >= 0.3"
partly_if = "leakage_score.mean >= 0.1"
quick = "quick"
nearest = "near"
"""
KNOWN = frozenset({"six", "near", "quick"})


def parse(text):
    return parse_claims(text, "claims.toml", KNOWN)


def test_a_claim_is_what_its_entry_says():
    (claim,) = parse(ENTRY).values()
    assert claim.texts == ["It works.", "leakage_score.mean >= 0.3", "leakage_score.mean >= 0.1"]
    assert claim.names == ("leakage_score.mean", "leakage_score.mean")
    assert (claim.quick, claim.nearest) == ("quick", "near")
    assert parse(ENTRY.replace('nearest = "near"\n', ""))["six"].nearest == ""
    left_out = parse(ENTRY.replace('quick = "quick"', 'not_quick = "It is slow."'))["six"]
    assert (left_out.quick, left_out.not_quick, left_out.nearest) == ("", "It is slow.", "near")


@pytest.mark.parametrize("key", ["claim", "reproduced_if", "partly_if"])
def test_a_missing_key_is_named(key):
    text = "\n".join(line for line in ENTRY.splitlines() if not line.startswith(f"{key} = "))
    with pytest.raises(ValueError, match=rf"^claims.toml: \[six\]: key {key} is missing$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{ENTRY}reproduced = 1\n", r"\[six\]: unknown key reproduced, expected claim, reproduced_if"),
        (f"{ENTRY}[seven]\n", r"\[seven\]: unknown preset, expected one of near, quick, six"),
        ("six = 1\n", r"\[six\]: expected a table"),
        (ENTRY.replace('"quick"', "3"), r"\[six\]: quick=3: expected a text"),
        (ENTRY.replace('quick = "quick"', ""), r"\[six\]: expected one of the keys quick and not_quick"),
        (f'{ENTRY}not_quick = "It is slow."\n', r"\[six\]: expected one of the keys quick and not_quick"),
        (ENTRY.replace('"It works."', '" "'), r"\[six\]: claim=' ': expected a text"),
        (ENTRY.replace(">= 0.3", "= 0.3"), r"\[six\]: criterion="),
        (ENTRY + ENTRY, r"claims.toml: expected TOML, "),
        ("[six", r"claims.toml: expected TOML, "),
    ],
)
def test_anything_else_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse(text)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("claims.toml: ")


def test_a_preset_without_a_claim_and_an_unknown_preset_are_refused(tmp_path, monkeypatch):
    (tmp_path / "paper").mkdir()
    for name in ("six", "near", "quick"):
        (tmp_path / "paper" / f"{name}.flags").write_text("")
    monkeypatch.setattr(flags, "PRESETS", tmp_path)
    with pytest.raises(ValueError, match=rf"preset=six: expected an entry \[six\] in .*{CLAIMS_NAME}"):
        read_claim("six")
    (tmp_path / "paper" / CLAIMS_NAME).write_text(ENTRY)
    assert read_claim("six") == read_claim("paper/six") == parse(ENTRY)["six"]
    with pytest.raises(ValueError, match="preset=near: expected an entry"):
        read_claim("near")
    with pytest.raises(ValueError, match="preset=seven: expected one of"):
        read_claim("seven")


@pytest.mark.parametrize("path", sorted(PRESETS.rglob(CLAIMS_NAME)), ids=lambda path: path.parent.name)
def test_every_file_is_read_and_names_presets_that_there_are(path):
    presets = frozenset(found.stem for found in path.parent.glob("*.flags"))
    claims = parse_claims(path.read_text(), str(path), presets)
    assert claims
    everywhere = {found.stem for found in PRESETS.rglob("*.flags")}
    for claim in claims.values():
        assert {claim.quick, claim.nearest} - {""} <= everywhere
