"""Clients share no owner; what is sent and held out shares no image and no record; everything else is equal."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan_leak.data import split_by_owner, split_iid


def split(labels, owners, seed=0, **changes):
    arguments = {
        "clients": 2,
        "owners_per_client": 1,
        "sent_per_class": 1,
        "held_out_per_class": 1,
        "balanced": True,
        "auxiliary_owners": 0,
        "third_party_owners": 0,
    } | changes
    return split_by_owner(np.asarray(labels), owners, rng=np.random.default_rng(seed), **arguments)


@st.composite
def federations(draw):
    """Labels, owners and records of some people, and the arguments of a split that they may be too few for."""
    classes = draw(st.integers(1, 3))
    rotated = draw(st.booleans())
    labels, owners, records = [], [], []
    # Numbers of owners and of classes may have gaps.
    for owner in range(draw(st.integers(1, 9))):
        counts = [draw(st.integers(0, 6))] * classes if rotated else [draw(st.integers(0, 6)) for _ in range(classes)]
        for label, count in enumerate(counts):
            labels += [2 * label] * count
            owners += [3 * owner - 4] * count
            records += [100 * owner + (place if rotated else 10 * label + place) for place in range(count)]
    order = np.array(draw(st.permutations(range(len(labels)))), int)
    arguments = {
        "clients": draw(st.integers(1, 3)),
        "owners_per_client": draw(st.integers(1, 2)),
        "sent_per_class": draw(st.integers(1, 3)),
        "held_out_per_class": draw(st.integers(1, 2)),
        "balanced": draw(st.booleans()),
        "auxiliary_owners": draw(st.integers(0, 2)),
        "third_party_owners": draw(st.integers(0, 2)),
        "seed": draw(st.integers(0, 99)),
    }
    labels, owners, records = (np.array(values, int)[order] for values in (labels, owners, records))
    return labels, owners, records if rotated or draw(st.booleans()) else None, arguments


def counted(labels, classes):
    counts = collections.Counter(labels.tolist())
    return [counts[label] for label in classes]


def eligible(labels, owners, classes, arguments):
    """The owners with enough images, by counting."""
    sent, held_out = arguments["sent_per_class"], arguments["held_out_per_class"]
    found = set()
    for owner in set(owners.tolist()):
        counts = counted(labels[owners == owner], classes)
        each = held_out + sent if arguments["balanced"] else held_out
        if min(counts) >= each and sum(counts) >= (held_out + sent) * len(classes):
            found.add(owner)
    return found


@given(federations())
def test_guarantees_of_a_split(federation):
    labels, owners, records, arguments = federation
    classes = np.unique(labels).tolist()
    clients, m = arguments["clients"], arguments["owners_per_client"]
    needed = clients * m + arguments["auxiliary_owners"] + arguments["third_party_owners"]
    enough = eligible(labels, owners, classes, arguments) if classes else set()
    if len(enough) < needed:
        with pytest.raises(ValueError, match=f"clients={clients}: {len(enough)} owners have|labels: ") as caught:
            split(labels, owners, records=records, **arguments)
        assert "\n" not in str(caught.value)
        return
    result = split(labels, owners, records=records, **arguments)
    groups = [*result.sent, *result.held_out, result.auxiliary, result.third_parties]
    together = np.concatenate(groups)
    assert len(np.unique(together)) == len(together)
    assert all((np.diff(group) > 0).all() for group in groups)
    assert result.owners.shape == (clients, m)
    people = [set(row.tolist()) for row in result.owners]
    people += [set(owners[outside].tolist()) for outside in (result.auxiliary, result.third_parties)]
    assert [len(group) for group in people[-2:]] == [arguments["auxiliary_owners"], arguments["third_party_owners"]]
    # No person is at two places, and all have enough images.
    assert len(set().union(*people)) == needed
    assert set().union(*people) <= enough
    sent, held_out = arguments["sent_per_class"], arguments["held_out_per_class"]
    for row, of_sent, of_held_out in zip(result.owners.tolist(), result.sent, result.held_out, strict=True):
        for owner in row:
            own_sent, own_held_out = (side[owners[side] == owner] for side in (of_sent, of_held_out))
            assert counted(labels[own_held_out], classes) == [held_out] * len(classes)
            assert len(own_sent) == sent * len(classes)
            if arguments["balanced"]:
                assert counted(labels[own_sent], classes) == [sent] * len(classes)
            if records is not None:
                assert not set(records[own_sent].tolist()) & set(records[own_held_out].tolist())
        assert len(of_sent) == m * sent * len(classes)
    for outside, group in zip((result.auxiliary, result.third_parties), people[-2:], strict=True):
        np.testing.assert_array_equal(outside, np.flatnonzero(np.isin(owners, list(group))))
    again = split(labels, owners, records=records, **arguments)
    for one, other in zip(
        (*groups, result.owners), (*again.sent, *again.held_out, *again[3:], again.owners), strict=True
    ):
        np.testing.assert_array_equal(one, other)


PEOPLE, EACH, DRAWS = 8, 6, 150
LABELS = np.tile(np.repeat([0, 1], EACH), PEOPLE)
OWNERS = np.repeat(np.arange(PEOPLE), 2 * EACH)


def same(one, other):
    return all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


def test_people_outside_change_nothing_within_and_not_each_other():
    alone = split(LABELS, OWNERS)
    with_both = split(LABELS, OWNERS, auxiliary_owners=2, third_party_owners=2)
    with_more = split(LABELS, OWNERS, auxiliary_owners=3, third_party_owners=2)
    for other in (with_both, with_more):
        np.testing.assert_array_equal(alone.owners, other.owners)
        assert same(alone.sent, other.sent)
        assert same(alone.held_out, other.held_out)
        np.testing.assert_array_equal(with_both.third_parties, other.third_parties)
    assert set(with_both.auxiliary) < set(with_more.auxiliary)
    assert len(alone.auxiliary) == len(alone.third_parties) == 0


def test_owners_and_images_are_drawn_at_random():
    """Each of 8 people is in one of 2 clients in a quarter of the draws, and each image is sent in a sixth of them."""
    draws = [split(LABELS, OWNERS, seed) for seed in range(DRAWS)]
    chosen = np.bincount(np.concatenate([draw.owners.ravel() for draw in draws]), minlength=PEOPLE)
    # Five standard deviations of a binomial count around its mean.
    assert (np.abs(chosen - DRAWS / 4) < 5 * np.sqrt(DRAWS * 0.25 * 0.75)).all()
    for side in ("sent", "held_out"):
        drawn = np.bincount(np.concatenate([np.concatenate(getattr(draw, side)) for draw in draws]) % 12, minlength=12)
        assert (np.abs(drawn - 2 * DRAWS / EACH) < 5 * np.sqrt(2 * DRAWS / EACH * (1 - 1 / EACH))).all()


def test_named_owners_are_taken_and_not_drawn_elsewhere():
    result = split(LABELS, OWNERS, client_owners=[[6], [1]], auxiliary_owners=[3, 0], third_party_owners=4)
    assert result.owners.tolist() == [[6], [1]]
    assert {OWNERS[index] for index in result.sent[0]} == {6}
    np.testing.assert_array_equal(result.auxiliary, np.flatnonzero(np.isin(OWNERS, [0, 3])))
    assert set(OWNERS[result.third_parties].tolist()) == {2, 4, 5, 7}
    for seed in range(20):
        drawn = split(LABELS, OWNERS, seed, clients=3, auxiliary_owners=[3, 0], third_party_owners=[7, 2])
        assert set(drawn.owners.ravel().tolist()) <= {1, 4, 5, 6}


SERIES = np.where(OWNERS < 5, 0, 4)


def test_one_series_is_chosen_for_everyone():
    result = split(LABELS, OWNERS, series=SERIES, only_series=0, auxiliary_owners=2, third_party_owners=1)
    assert set(OWNERS[np.concatenate([*result.sent, *result.held_out, *result[3:]])].tolist()) == {0, 1, 2, 3, 4}
    # Named clients decide it.
    named = split(LABELS, OWNERS, series=SERIES, client_owners=[[7], [5]], third_party_owners=1)
    assert set(OWNERS[named.third_parties].tolist()) == {6}
    # The images of a person in another series are not used.
    moved = np.where(np.arange(len(OWNERS)) % EACH < 4, SERIES, 9)
    some = split(LABELS, OWNERS, series=moved, only_series=0, sent_per_class=3, auxiliary_owners=1)
    assert (moved[np.concatenate([*some.sent, *some.held_out, some.auxiliary])] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"owners": None}, "owners=None: expected the owner of each image"),
        ({"owners": OWNERS[1:]}, r"owners: int64 \[95\], expected integers \[96\]"),
        ({"owners": OWNERS * 1.0}, r"owners: float64 \[96\], expected integers"),
        ({"records": OWNERS[1:]}, r"records: int64 \[95\], expected integers \[96\]"),
        ({"records": np.arange(96) // 24}, "records=0: images of two owners, expected one owner"),
        ({"clients": 0}, "clients=0: expected at least 1"),
        ({"owners_per_client": 0}, "owners_per_client=0: expected at least 1"),
        ({"sent_per_class": 0}, "sent_per_class=0: expected at least 1"),
        ({"held_out_per_class": 0}, "held_out_per_class=0: expected at least 1"),
        ({"auxiliary_owners": -1}, "auxiliary_owners=-1: expected at least 0"),
        ({"third_party_owners": -1}, "third_party_owners=-1: expected at least 0"),
        (
            {"clients": 3, "owners_per_client": 2, "auxiliary_owners": 2, "third_party_owners": 1},
            "clients=3: 8 owners have enough images, expected 9: 6 in clients of 2, 2 auxiliary and 1 third parties$",
        ),
        (
            {"sent_per_class": 4, "held_out_per_class": 3},
            "clients=2: 0 owners have enough images, .*; owner 0 has 6 suitable images of class 0, expected 7 "
            r"\(4 sent and 3 held out\)$",
        ),
        (
            {"client_owners": [[6], [1]], "held_out_per_class": 7},
            "^client_owners: owner 6 has 6 suitable images of class 0, expected 8",
        ),
        (
            {"client_owners": [[6], [1]], "held_out_per_class": 7, "balanced": False},
            "^client_owners: owner 6 has 6 suitable images of class 0, expected 7 held out$",
        ),
        (
            {"client_owners": [[6], [1]], "held_out_per_class": 4, "sent_per_class": 3, "balanced": False},
            "^client_owners: owner 6 has 4 suitable images that are not held out, expected 6 to send$",
        ),
        ({"client_owners": [[6, 1]]}, r"client_owners: \[2\] owners of the clients, expected 1 for each of 2"),
        ({"client_owners": [[6], [8]]}, "client_owners: owner 8 has no image, expected owners in the data"),
        ({"client_owners": [[6], [6]]}, "client_owners: owner 6 belongs to client 1 and to client 0, expected"),
        (
            {"client_owners": [[6], [1]], "auxiliary_owners": [3, 1]},
            "auxiliary_owners: owner 1 belongs to the auxiliary owners and to client 1, expected each owner once",
        ),
        (
            {"auxiliary_owners": [3, 1], "third_party_owners": [1]},
            "third_party_owners: owner 1 belongs to the third party owners and to the auxiliary owners",
        ),
        ({"third_party_owners": [9]}, "third_party_owners: owner 9 has no image"),
        ({"series": SERIES}, r"series: mixed series \[0, 4\], expected owners of one series"),
        ({"series": SERIES, "client_owners": [[6], [1]]}, r"series: mixed series \[0, 4\]"),
        (
            {"series": SERIES, "client_owners": [[6], [5]], "auxiliary_owners": [0]},
            r"series: mixed series \[0, 4\]",
        ),
        (
            {"series": SERIES, "only_series": 0, "client_owners": [[6], [1]]},
            "series=0: mixed series, owner 6 has images of series 4, expected owners of one series",
        ),
        ({"series": SERIES, "only_series": 3}, r"series=3: expected one of \[0, 4\]"),
        ({"series": SERIES[1:]}, r"series: int64 \[95\], expected integers \[96\]"),
        ({"only_series": 0}, "series=0: expected none, since the data have no series"),
        (
            {"series": SERIES, "only_series": 4, "clients": 4},
            "clients=4: 3 owners have enough images, expected 4",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        split(LABELS, **{"owners": OWNERS} | changes)
    assert "\n" not in str(caught.value)


def test_an_owner_with_too_few_photos_is_not_drawn_although_its_images_would_be_enough():
    """Four rotations of one photo are one record: four images of it fill one side only."""
    records = np.array([0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 8)
    owners = np.array([0] * 8 + [1] * 8 + [2] * 8)
    labels = np.arange(24) % 4
    for seed in range(10):
        assert set(split(labels, owners, seed, records=records).owners.ravel().tolist()) == {0, 1}
    with pytest.raises(
        ValueError, match=r"clients=3: 2 owners .*; owner 2 has 1 suitable images of class 0, expected 2"
    ):
        split(labels, owners, records=records, clients=3)


@given(federations())
def test_the_control_keeps_sizes_classes_and_sides(federation):
    labels, owners, records, arguments = federation
    try:
        owned = split(labels, owners, records=records, **arguments)
    except ValueError:
        return
    mixed = split_iid(owned, labels, rng=np.random.default_rng(0), records=records)
    for before, after in ((owned.sent, mixed.sent), (owned.held_out, mixed.held_out)):
        np.testing.assert_array_equal(np.sort(np.concatenate(before)), np.sort(np.concatenate(after)))
        for one, other in zip(before, after, strict=True):
            assert sorted(labels[one].tolist()) == sorted(labels[other].tolist())
        if records is not None:
            # Images of one original that were at one client still are.
            of_client = [set(records[indices].tolist()) for indices in after]
            assert sum(map(len, of_client)) == len(set().union(*of_client))
    assert mixed.owners.shape == (len(owned.sent), 0)
    assert same(owned[3:], mixed[3:])


def identified(result, features):
    """The share of clients whose mean sent feature is nearest to that of their own gallery."""
    sent, held_out = (
        np.array([features[indices].mean() for indices in side]) for side in (result.sent, result.held_out)
    )
    return np.mean(np.abs(sent[:, None] - held_out).argmin(1) == np.arange(len(sent)))


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("balanced", [True, False])
def test_identification_is_perfect_by_owner_and_at_chance_in_the_control(rotated, balanced):
    """Of images that show nothing but their owner."""
    records = np.arange(len(OWNERS)) // 12 * 6 + np.arange(len(OWNERS)) % 6 if rotated else None
    rates = []
    for seed in range(DRAWS):
        owned = split(LABELS, OWNERS, seed, records=records, clients=4, sent_per_class=2, balanced=balanced)
        assert identified(owned, OWNERS) == 1
        # A little noise decides ties.
        noisy = OWNERS + np.random.default_rng(seed).normal(0, 1e-3, len(OWNERS))
        rates.append(identified(split_iid(owned, LABELS, rng=np.random.default_rng(seed), records=records), noisy))
    # Chance is 1/4; five standard errors of the mean over federations.
    assert abs(np.mean(rates) - 1 / 4) < 5 * np.std(rates) / np.sqrt(DRAWS)
    assert 0 < np.std(rates) < 1 / 2
