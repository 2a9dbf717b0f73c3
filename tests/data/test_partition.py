"""Participants are disjoint, caps hold, and the adversary never owns its target class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_leak.data import (
    check_adversary_ignorance,
    gather,
    parse_participant_classes,
    partition,
    split_off_judge_pool,
)

SCHEMES = ("by_class", "iid", "dirichlet")


def deal(labels, seed=0, **changes):
    arguments = {
        "scheme": "by_class",
        "participant_classes": ((0, 1), (2, 3)),
        "samples_per_participant": 0,
        "adversary": 1,
        "target_class": 0,
        "dirichlet_concentration": 0.5,
    } | changes
    return partition(np.asarray(labels), rng=np.random.default_rng(seed), **arguments)


def test_parse_participant_classes():
    assert parse_participant_classes("0-4;5-9", 10) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
    assert parse_participant_classes(" 3, 1 - 2 ;;0", 4) == ((1, 2, 3), (), (0,))
    assert parse_participant_classes(";", 4) == ((), ())
    assert parse_participant_classes("each 0-2;", 4) == ((0,), (1,), (2,), ())
    assert parse_participant_classes(" each 3,1 ;0,2", 4) == ((1,), (3,), (0, 2))
    assert parse_participant_classes("2 of 0,2; 1 of 3;1 of ", 4) == ((0, 2), (0, 2), (3,), ())
    assert len(parse_participant_classes("50 of 0-4;50 of 5-9", 10)) == 100


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "a", "1,", "0-", "-1", "4-2", "0-4,3", "0-10", "0-999999999999", "1;2.5", "٣"),
        *("each", "each ", "each ;0", "each0-2", "each 0-2 each 3", "each each 1", "each 9-10", "each 1,1", "Each 1"),
        *(
            "0-2 each",
            "0 of 1",
            "2 of",
            "of 1",
            "2of 1",
            "-1 of 1",
            "1.5 of 1",
            "2 of 10",
            "100001 of 1",
            "2 of 2 of 1",
        ),
    ],
)
def test_parse_participant_classes_refuses_nonsense(text):
    with pytest.raises(ValueError, match="participant_classes="):
        parse_participant_classes(text, 10)


def test_judge_pool_by_hand():
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 1, 1])
    federation, judge = split_off_judge_pool(labels, 4)
    # Two of each six, at positions 6 * 1/4 and 6 * 3/4 of the class.
    np.testing.assert_array_equal(judge, [2, 3, 7, 10])
    np.testing.assert_array_equal(federation, [0, 1, 4, 5, 6, 8, 9, 11])


@given(
    st.lists(st.integers(0, 5), max_size=200).map(lambda labels: np.array(labels, int)),
    st.integers(0, 300),
)
def test_judge_pool_guarantees(labels, judge_samples):
    federation, judge = split_off_judge_pool(labels, judge_samples)
    np.testing.assert_array_equal(np.sort(np.concatenate([federation, judge])), np.arange(len(labels)))
    wanted = min(judge_samples, len(labels) // 2)
    assert len(judge) <= wanted
    counts, taken = np.bincount(labels, minlength=6), np.bincount(labels[judge], minlength=6)
    assert (taken <= counts // 2).all()
    # The half of a class with an odd number is rounded down.
    assert len(judge) >= wanted - np.sum(counts % 2)
    if len(labels):
        assert (np.abs(taken - counts * wanted / len(labels)) < 1).all()
    np.testing.assert_array_equal(judge, split_off_judge_pool(labels, judge_samples)[1])


def test_judge_pool_refuses_negative_sizes():
    with pytest.raises(ValueError, match="judge_samples=-1"):
        split_off_judge_pool(np.zeros(9, int), -1)


def test_by_class_gives_each_participant_exactly_its_classes():
    shares = deal([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(shares[0], [0, 1, 5, 6])
    np.testing.assert_array_equal(shares[1], [2, 3, 7, 8])


def test_by_class_deals_a_shared_class_evenly():
    labels = np.repeat([0, 1, 2], 9)
    shares = deal(labels, participant_classes=((0, 1), (1, 2), (1,)))
    assert [np.bincount(labels[share], minlength=3).tolist() for share in shares] == [[9, 3, 0], [0, 3, 9], [0, 3, 0]]


def test_by_class_allows_a_participant_without_data_and_an_unowned_target():
    shares = deal([0, 1, 2, 3], participant_classes=((0, 1), (2,), ()), target_class=3)
    assert [share.tolist() for share in shares] == [[0, 1], [2], []]


def test_iid_splits_evenly_and_drops_the_target_from_the_adversary_only():
    labels = np.repeat([0, 1], 50)
    shares = deal(labels, scheme="iid", target_class=1)
    assert len(shares[0]) == 50
    kept_zeros = np.concatenate(shares)[labels[np.concatenate(shares)] == 0]
    np.testing.assert_array_equal(np.sort(kept_zeros), np.arange(50))
    assert (labels[shares[1]] == 0).all()


def test_dirichlet_concentration_sets_the_skew():
    labels = np.repeat(np.arange(10), 100)

    def largest_share(concentration):
        shares = deal(
            labels,
            scheme="dirichlet",
            dirichlet_concentration=concentration,
            participant_classes=((),) * 4,
            target_class=99,
        )
        counts = np.stack([np.bincount(labels[share], minlength=10) for share in shares])
        assert (counts.sum(0) == 100).all()
        return counts.max(0).mean()

    assert largest_share(1e6) == pytest.approx(25, abs=1)
    assert largest_share(0.05) > 75


def test_the_cap_keeps_the_proportions_of_the_classes():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    shares = deal(labels, participant_classes=((0, 1), (2,)), samples_per_participant=30)
    assert np.bincount(labels[shares[0]]).tolist() == [20, 10]
    assert len(shares[1]) == 10


def test_candidates_are_the_only_ones_dealt():
    labels = np.tile(np.arange(4), 10)
    candidates = np.arange(0, 40, 3)
    for scheme in SCHEMES:
        shares = deal(labels, scheme=scheme, candidates=candidates, target_class=99, dirichlet_concentration=50.0)
        np.testing.assert_array_equal(np.sort(np.concatenate(shares)), candidates)


@st.composite
def partition_cases(draw):
    num_classes = draw(st.integers(2, 6))
    labels = np.array(draw(st.lists(st.integers(0, num_classes - 1), min_size=30, max_size=150)))
    participants = draw(st.integers(1, 4))
    classes = st.lists(st.integers(0, num_classes - 1), unique=True, max_size=num_classes).map(tuple)
    return labels, {
        "scheme": draw(st.sampled_from(SCHEMES)),
        "participant_classes": tuple(draw(classes) for _ in range(participants)),
        "samples_per_participant": draw(st.integers(0, 40)),
        "adversary": draw(st.integers(0, participants - 1)),
        "target_class": draw(st.integers(0, num_classes - 1)),
        "dirichlet_concentration": draw(st.floats(1e-3, 100)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@settings(max_examples=300, deadline=None)
@given(partition_cases())
def test_partition_guarantees(case):
    labels, arguments = case
    if (
        arguments["scheme"] == "by_class"
        and arguments["target_class"] in arguments["participant_classes"][arguments["adversary"]]
    ):
        with pytest.raises(ValueError, match="owned by the adversary"):
            deal(labels, **arguments)
        return
    try:
        shares = deal(labels, **arguments)
    except ValueError as error:
        if "gets no image" not in str(error):
            raise
        return
    assert len(shares) == len(arguments["participant_classes"])
    dealt = np.concatenate(shares)
    assert len(np.unique(dealt)) == len(dealt)
    assert not np.any(labels[shares[arguments["adversary"]]] == arguments["target_class"])
    for share, classes in zip(shares, arguments["participant_classes"], strict=True):
        assert np.all(np.diff(share) > 0)
        if arguments["samples_per_participant"]:
            assert len(share) <= arguments["samples_per_participant"]
        if arguments["scheme"] == "by_class":
            assert set(labels[share]) <= set(classes)
    for share, again in zip(shares, deal(labels, **arguments), strict=True):
        np.testing.assert_array_equal(share, again)


def test_another_seed_deals_otherwise():
    labels = np.repeat(np.arange(4), 20)
    for scheme in SCHEMES:
        first, second = (deal(labels, seed, scheme=scheme, samples_per_participant=10) for seed in (0, 1))
        assert any(not np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "random"}, "partition='random', expected one of"),
        ({"adversary": 2}, "adversary=2, expected"),
        ({"adversary": -1}, "adversary=-1, expected"),
        ({"samples_per_participant": -1}, "samples_per_participant=-1"),
        ({"scheme": "dirichlet", "dirichlet_concentration": 0.0}, "dirichlet_concentration=0.0"),
        ({"scheme": "dirichlet", "dirichlet_concentration": float("nan")}, "dirichlet_concentration=nan"),
        ({"target_class": 2}, "target_class=2 is owned by the adversary 1"),
        ({"participant_classes": ((7,), (2, 3))}, "participant 0 gets no image"),
        ({"scheme": "iid", "participant_classes": ((),) * 50}, "gets no image"),
        ({"candidates": [0, 0]}, "index twice"),
        ({"candidates": [-1]}, "expected within"),
        ({"candidates": [40]}, "expected within"),
    ],
)
def test_partition_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        deal(np.tile(np.arange(4), 10), **changes)


def test_only_the_adversary_may_end_up_without_images():
    labels = np.zeros(20, int)
    shares = deal(labels, scheme="iid", target_class=0)
    assert [len(share) for share in shares] == [10, 0]


def test_check_adversary_ignorance():
    check_adversary_ignorance(np.array([5, 6, 7]), 3)
    check_adversary_ignorance(np.array([], int), 3)
    with pytest.raises(ValueError, match="owns 2 images of target_class=3"):
        check_adversary_ignorance(np.array([3, 6, 3]), 3)


def test_gather_pads_to_the_longest():
    images = np.array([0, 255, 51, 102], np.uint8).reshape(4, 1, 1, 1)
    data = gather(images, np.array([3, 1, 2, 0]), (np.array([1, 2]), np.array([3]), np.array([], int)))
    assert data.inputs.dtype == np.float32
    assert data.labels.dtype == data.sizes.dtype == np.int32
    assert data.inputs.shape == (3, 2, 1, 1, 1)
    np.testing.assert_allclose(data.inputs[..., 0, 0, 0], [[1, -0.6], [-0.2, 0], [0, 0]], atol=1e-7)
    np.testing.assert_array_equal(data.labels, [[1, 2], [0, 0], [0, 0]])
    np.testing.assert_array_equal(data.sizes, [2, 1, 0])


def test_gather_refuses_nothing():
    images, labels = np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, int)
    for indices in ((), (np.array([], int),)):
        with pytest.raises(ValueError, match="at least one participant with an image"):
            gather(images, labels, indices)
