"""Names sort as people count, and a text means one class or none: never silently another one."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan_leak.data import find_class, make_lookup, parse_participant_classes
from gan_leak.data.class_names import natural_key, shown


def test_numbers_within_names_are_counted():
    names = ["10", "9", "2", "1", "01", "c10", "c9", "c", "b2x10", "b2x9", "B", "v1.10", "v1.9"]
    expected = ["01", "1", "2", "9", "10", "B", "b2x9", "b2x10", "c", "c9", "c10", "v1.9", "v1.10"]
    assert sorted(names, key=natural_key) == expected


def compare_by_hand(left, right):
    """Character by character, digits as whole numbers; what is left equal is told apart by its text."""
    a, b = left, right
    while a and b:
        if a[0] in "0123456789" and b[0] in "0123456789":
            digits = [len(text) - len(text.lstrip("0123456789")) for text in (a, b)]
            numbers = int(a[: digits[0]]), int(b[: digits[1]])
            if numbers[0] != numbers[1]:
                return -1 if numbers[0] < numbers[1] else 1
            a, b = a[digits[0] :], b[digits[1] :]
        elif a[0] != b[0]:
            # A digit ends the text before it, and a text that ends comes first.
            if a[0] in "0123456789" or b[0] in "0123456789":
                return -1 if a[0] in "0123456789" else 1
            return -1 if a[0] < b[0] else 1
        else:
            a, b = a[1:], b[1:]
    if a or b:
        return 1 if a else -1
    return (left > right) - (left < right)


@given(st.lists(st.text(alphabet="ab-.019", max_size=6), unique=True, max_size=12), st.randoms())
def test_the_order_is_that_of_a_comparison_by_hand_whatever_order_came_before(names, random):
    shuffled = random.sample(names, len(names))
    ordered = sorted(shuffled, key=natural_key)
    assert ordered == sorted(names, key=functools.cmp_to_key(compare_by_hand))


def test_bytes_that_are_no_utf8_and_control_characters_are_shown_as_escapes():
    assert shown("caf\udce9") == "caf\\xe9"
    assert shown("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"
    assert shown("Käse 犬") == "Käse 犬"


@given(st.text(max_size=8))
def test_what_is_shown_is_printable_utf8_of_one_line(name):
    text = shown(name)
    assert text.isprintable()
    text.encode()
    assert shown(text) == text


CARS = ("cat", "dog", "T-shirt", "0-1", "a,b", "index:7", "café", "-1")


@pytest.mark.parametrize(
    ("names", "text", "number"),
    [
        (CARS, "dog", 1),
        (CARS, " dog ", 1),
        (CARS, "1", 1),
        (CARS, "index:1", 1),
        (CARS, "name:dog", 1),
        (CARS, "T-shirt", 2),
        (CARS, "0-1", 3),
        (CARS, "cafe\N{COMBINING ACUTE ACCENT}", 6),
        (CARS, "-1", 7),
        (("caf\\xe9", "x"), "caf\udce9", 0),
        # The folders 0 to 11 in their order: both readings agree.
        (tuple(map(str, range(12))), "2", 2),
        (("00", "01", "02"), "2", 2),
        (("5", "7"), "1", 1),
        (("5", "7"), "name:5", 0),
        (("1", "2", "3"), "index:1", 1),
    ],
)
def test_a_class_is_its_number_or_its_name(names, text, number):
    assert find_class(make_lookup(names), text) == number


@pytest.mark.parametrize(
    ("names", "text", "named"),
    [
        # 5 is the name of the first class, and would be a number out of range.
        (("5", "7"), "5", "expected index:0"),
        (("1", "2", "3"), "1", "expected index:0 (1) or index:1 (2)"),
        # Zeros in front do not hide that a number is a name.
        (("01", "02", "03"), "1", "expected index:0 (01) or index:1 (02)"),
        (("10", "2"), "2", "expected index:1 (2)"),
        (CARS, "index:7", "expected index:5 (index:7) or index:7 (-1)"),
        (CARS, "bird", "expected 0 to 7, or the name of a class (cat, dog,"),
        (CARS, "8", "expected 0 to 7"),
        (CARS, "", "expected 0 to 7"),
        (CARS, "-2", "expected 0 to 7"),
        (CARS, "1.0", "expected 0 to 7"),
        (CARS, "٣", "expected 0 to 7"),
        (CARS, "9" * 5000, "expected 0 to 7"),
        (CARS, "index:cat", "expected 0 to 7"),
        (CARS, "name:1", "expected 0 to 7"),
        (CARS, "Dog", "expected 0 to 7"),
    ],
)
def test_a_text_that_means_no_class_or_two_is_refused(names, text, named):
    with pytest.raises(ValueError, match="expected") as raised:
        find_class(make_lookup(names), text)
    assert named in str(raised.value)


@given(st.lists(st.text(alphabet="019a", min_size=1, max_size=2), min_size=1, max_size=6, unique=True), st.data())
def test_a_text_never_means_a_class_that_another_reading_denies(names, data):
    text = data.draw(st.sampled_from([*names, *map(str, range(12))]))
    readings = {number for number, name in enumerate(names) if name == text}
    if text.isdigit():
        readings |= {int(text)}
        readings |= {number for number, name in enumerate(names) if name.isdigit() and int(name) == int(text)}
    try:
        found = find_class(make_lookup(names), text)
    except ValueError:
        assert len(readings) != 1 or max(readings) >= len(names)
    else:
        assert readings == {found}


def test_participants_are_given_classes_by_name_number_and_range():
    assert parse_participant_classes("cat, dog;2,name:0-1; ;index:4-5", CARS) == ((0, 1), (2, 3), (), (4, 5))
    assert parse_participant_classes("each dog,0;T-shirt", CARS) == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    ("names", "text", "named"),
    [
        (CARS, "0-1;2", "expected name:0-1 or numbers"),
        (CARS, "a,b;2", "'a,b;2': a: expected 0 to 7"),
        (CARS, "cat,0", "names a class twice"),
        (CARS, "bird;cat", "'bird;cat': bird: expected 0 to 7"),
        (("1", "2", "3"), "0-2", "0-2: 1: a number and the name of another class"),
        (("1", "2", "3"), "0;1", "1: a number and the name of another class"),
        (("each one", "one", "two"), "each one", "is the name of a class"),
        (CARS, "index:5-9", "in increasing order within 0..7"),
    ],
)
def test_participants_are_not_given_what_may_mean_two_classes(names, text, named):
    with pytest.raises(ValueError, match="participant_classes=") as raised:
        parse_participant_classes(text, names)
    assert named in str(raised.value)
