"""Identification: real images of the victim score 1, pictures without identity exactly chance, whatever they show."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy.stats import kstest

from gan_leak.evaluation.client_distances import (
    Galleries,
    SentImages,
    cosine_space,
    distances_between_halves,
    distances_to_clients,
    distances_to_sent,
    held_out_distances,
    pixel_space,
)
from gan_leak.evaluation.identification import (
    build_identification_references,
    identification_numbers,
    identification_score,
    measure_identification,
    shares,
)
from gan_leak.evaluation.identification_controls import (
    derangement,
    identified_as_others,
    identified_as_outsiders,
    scored_as,
)
from gan_leak.evaluation.intervals import permutation_p_value

CLIENTS, CLASSES, PER_CLASS = 6, 3, 4
SHAPE = (8, 8, 1)
SEEDS = st.integers(0, 2**16)


def _people(seed, *, clients=CLIENTS, identity=0.25, count=PER_CLASS, of=0):
    """Images [K, 3 count, 8, 8, 1] and classes: a class, plus what is a person's own, plus noise.

    ``seed`` decides classes and people, ``of`` the noise. identity 0: all people are alike.
    """
    rng = np.random.default_rng(seed)
    classes = rng.uniform(-0.5, 0.5, (1, CLASSES, 1, *SHAPE))
    persons = identity * rng.normal(size=(clients, CLASSES, 1, *SHAPE))
    noise = 0.4 * np.random.default_rng([seed, of]).normal(size=(clients, CLASSES, count, *SHAPE))
    images = np.clip(classes + persons + noise, -1, 1).astype(np.float32).reshape(clients, -1, *SHAPE)
    return images, np.tile(np.repeat(np.arange(CLASSES), count), (clients, 1))


def _references(seed=0, space=None, **options):
    return build_identification_references(Galleries(*_people(seed, **options)), space or pixel_space())


def _sent(images, labels):
    return [SentImages(*part) for part in zip(images, labels, strict=True)]


def _same_for_all(pictures, clients=CLIENTS):
    """Pictures [M, H, W, C] for every victim."""
    return np.broadcast_to(pictures, (clients, *pictures.shape)).astype(np.float32)


def _assert_chance(numbers, clients=CLIENTS, atol=1e-9):
    """Not near chance, but exactly it."""
    assert numbers.identified.mean == pytest.approx(1 / clients, abs=atol)
    assert numbers.identified_pooled.mean == pytest.approx(1 / clients, abs=atol)
    assert numbers.mean_rank.mean == pytest.approx((clients + 1) / 2, abs=atol)
    assert numbers.auc.mean == pytest.approx(0.5, abs=atol)
    assert numbers.user_gap.mean == pytest.approx(0.0, abs=1e-9)
    assert numbers.p_value == 1.0


def _holds(interval, value):
    return interval.low - 1e-9 <= value <= interval.high + 1e-9


# Distances


def _naive_distance(image, label, images, labels, skip=None):
    found = [
        math.dist(image.ravel().tolist(), other.ravel().tolist())
        for index, (other, of) in enumerate(zip(images, labels, strict=True))
        if of == label and index != skip
    ]
    return sum(found) / len(found)


@hypothesis.given(seed=SEEDS, clients=st.integers(2, 4), count=st.integers(2, 3), pictures=st.integers(1, 4))
def test_distances_equal_a_loop_over_pairs(seed, clients, count, pictures):
    """Of pictures to all clients, and of held-out images, each without itself; in any order of classes."""
    images, labels = _people(seed, clients=clients, count=count)
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(labels.shape[1]) for _ in range(clients)])
    galleries = Galleries(
        np.stack([i[o] for i, o in zip(images, order, strict=True)]), np.take_along_axis(labels, order, 1)
    )
    drawn, classes = rng.uniform(-1, 1, (clients, pictures, *SHAPE)), rng.integers(0, CLASSES, (clients, pictures))
    found = distances_to_clients(pixel_space(), drawn, classes, galleries)
    held_out = held_out_distances(pixel_space(), galleries)
    for victim in range(clients):
        for client, members in enumerate(zip(*galleries, strict=True)):
            naive = [
                _naive_distance(np.float32(x), y, *members) for x, y in zip(drawn[victim], classes[victim], strict=True)
            ]
            np.testing.assert_allclose(found[victim, :, client], naive, rtol=1e-6)
            own = [
                _naive_distance(x, y, *members, skip=index if client == victim else None)
                for index, (x, y) in enumerate(zip(galleries.images[victim], galleries.labels[victim], strict=True))
            ]
            np.testing.assert_allclose(held_out[victim, :, client], own, rtol=1e-6)


def test_cosine_distances_of_an_embedding():
    """To client 0, whose vectors are (1, 0) and (0, 1), and client 1 with (0, 1) twice."""
    images = np.array([[0, 1], [1, 1]], np.float32).reshape(2, 2, 1, 1, 1)
    space = cosine_space("toy", lambda pictures: np.stack([1 - pictures.ravel(), pictures.ravel()], axis=1))
    galleries = Galleries(images, np.zeros((2, 2), int))
    found = distances_to_clients(space, images[:, :1], np.zeros((2, 1), int), galleries)
    np.testing.assert_allclose(found, [[[0.5, 1.0]], [[0.5, 0.0]]])
    np.testing.assert_allclose(held_out_distances(space, galleries)[0], [[1.0, 1.0], [1.0, 0.0]])


# Numbers


def test_a_case_worked_out_by_hand():
    """Three clients, two pictures each, all of one class."""
    table = np.array(
        [[[1.0, 2.0, 3.0], [2.0, 2.0, 5.0]], [[1.0, 3.0, 2.0], [4.0, 1.0, 4.0]], [[3.0, 3.0, 3.0], [9.0, 8.0, 1.0]]]
    )
    found = identification_numbers(table, np.zeros((3, 2), int), seed=0)
    # A tie of two counts a half, a tie of three a third.
    assert found.identified.values == pytest.approx(((1 + 1 / 2) / 2, (0 + 1) / 2, (1 / 3 + 1) / 2))
    assert found.mean_rank.values == pytest.approx(((1 + 1.5) / 2, (3 + 1) / 2, (2 + 1) / 2))
    # Means: [1.5, 2, 4], [2.5, 2, 3], [6, 5.5, 2].
    assert found.identified_pooled.values == (1.0, 1.0, 1.0)
    assert found.user_gap.values == pytest.approx((3 - 1.5, 2.75 - 2, 5.75 - 2))
    # Of the six sums of permutations 5.5 is the least, and the only one.
    assert found.p_value == pytest.approx(1 / 6)
    # Relative to the mean over clients, to client 0: own -1 and -1; others -1, 1, 0 and 3.
    assert found.auc.values[0] == pytest.approx((0.5 + 1 + 1 + 1) / 4)


def test_the_area_compares_pictures_of_one_class_only():
    """Class 1 is far from every gallery in the direction of victim 0; pictures of class 0 say nothing about it."""
    table = np.array([[[1.0, 2.0], [5.0, 4.0]], [[2.0, 1.0], [6.0, 3.0]]])
    found = identification_numbers(table, np.array([[0, 1], [0, 1]]), seed=0)
    # Class 0: -0.5 against 0.5; class 1: 0.5 against 1.5.
    assert found.auc.values == (1.0, 1.0)
    apart = identification_numbers(table, np.array([[0, 0], [1, 1]]), seed=0)
    assert math.isnan(apart.auc.mean)


@hypothesis.given(seed=SEEDS, clients=st.integers(2, 5), distances=st.integers(1, 4))
def test_shares_sum_to_one_and_ties_are_never_in_favor(seed, clients, distances):
    table = np.random.default_rng(seed).integers(1, 1 + distances, (clients, 3, clients)).astype(float)
    found = shares(table)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0)
    for row, share in zip(table.reshape(-1, clients), found.reshape(-1, clients), strict=True):
        best = [client for client in range(clients) if row[client] == min(row)]
        assert share.tolist() == pytest.approx([float(client in best) / len(best) for client in range(clients)])


def test_ties_up_to_rounding_are_ties():
    """Sums in another order differ in the last digit; a millionth part is no difference either."""
    table = np.array([[[0.1 + 0.2, 0.3]], [[0.3, 0.1 + 0.2]]])
    found = identification_numbers(table, np.zeros((2, 1), int), seed=0)
    assert found.identified.values == (0.5, 0.5)
    assert found.mean_rank.values == (1.5, 1.5)
    assert found.auc.mean == 0.5


@hypothesis.given(seed=SEEDS, count=st.integers(1, CLIENTS))
def test_some_victims_have_the_numbers_that_they_have_among_all(seed, count):
    """In any order; only the areas need the pictures of others, and one victim has no control and no interval."""
    images, labels = _people(1, of=1)
    victims = np.random.default_rng(seed).permutation(CLIENTS)[:count]
    references, sent = _references(1), _sent(*_people(1, of=2))
    everyone = measure_identification(references, images, labels, sent=sent)
    some = measure_identification(references, images[victims], labels[victims], victims=victims, sent=sent)
    for name in ("identified", "identified_pooled", "mean_rank", "user_gap"):
        left, right = (np.array(getattr(found.numbers, name).values) for found in (everyone, some))
        np.testing.assert_allclose(left[victims], right)
    for name in ("record_gap", "similarity", "control_similarity"):
        left, right = (np.array(getattr(found, name).values) for found in (everyone, some))
        np.testing.assert_allclose(left[victims], right)
    table = distances_to_clients(references.space, images[victims], labels[victims], references.galleries)
    assert math.isnan(identified_as_others(table, victims=victims, seed=0).mean) == (count == 1)
    assert math.isnan(some.numbers.auc.mean) == (count == 1)


@pytest.mark.parametrize("victims", [[CLIENTS], [-1], [0, 0], []])
def test_victims_that_are_no_clients_are_refused(victims):
    images, labels = _people(1)
    with pytest.raises(ValueError, match=r"^victims=.*: expected (clients from 0 to 5|each once)$"):
        measure_identification(_references(), images[: len(victims)], labels[: len(victims)], victims=victims)


@hypothesis.given(seed=SEEDS)
def test_the_order_of_clients_pictures_and_gallery_images_is_irrelevant(seed):
    """Each victim keeps its numbers, wherever it stands."""
    images, labels = _people(1, of=1)
    rng = np.random.default_rng(seed)
    clients, pictures, members = rng.permutation(CLIENTS), rng.permutation(12), rng.permutation(12)
    galleries = Galleries(*_people(1))
    moved = Galleries(galleries.images[clients][:, members], galleries.labels[clients][:, members])
    before = measure_identification(
        build_identification_references(galleries, pixel_space()), images, labels, sent=_sent(images, labels)
    )
    after = measure_identification(
        build_identification_references(moved, pixel_space()),
        images[clients][:, pictures],
        labels[clients][:, pictures],
        sent=_sent(images[clients][:, members], labels[clients][:, members]),
    )
    for name in ("identified", "identified_pooled", "mean_rank", "auc", "user_gap"):
        left, right = (getattr(found.numbers, name).values for found in (before, after))
        np.testing.assert_allclose(np.array(left)[clients], right, atol=1e-9)
    np.testing.assert_allclose(np.array(before.record_gap.values)[clients], after.record_gap.values, atol=1e-9)
    assert after.score.mean == pytest.approx(before.score.mean)
    assert after.numbers.p_value == pytest.approx(before.numbers.p_value)


# The scale


def test_the_held_out_images_of_the_victim_score_one_and_those_of_others_at_most_zero():
    references = _references()
    assert references.reason is None
    own = identification_score(references, references.held_out)
    assert own[:3] == pytest.approx((1.0, 1.0, 1.0))
    for shift in range(1, CLIENTS):
        order = np.roll(np.arange(CLIENTS), shift)
        other = scored_as(references.held_out, order)
        assert identification_score(references, other).mean <= 0.0
        numbers = identification_numbers(other, references.galleries.labels[order], seed=0)
        assert numbers.user_gap.mean < 0.0
        assert numbers.auc.mean < 0.5
        assert numbers.p_value > 0.05


def test_further_images_of_the_victim_score_about_one():
    """Images that are in no gallery; those of another client score at most 0."""
    references = _references()
    images, labels = _people(0, of=1)
    found = measure_identification(references, images, labels)
    assert found.score.low < 1.0 < found.score.high + 0.1
    assert found.score.mean > 0.7
    assert found.numbers.identified.low > found.chance
    assert found.numbers.p_value <= 1 / 700
    others = measure_identification(references, np.roll(images, 1, axis=0), labels)
    assert others.score.high <= 0.0
    assert others.numbers.user_gap.mean < 0.0


@pytest.mark.parametrize("real", [0, 6, 12])
def test_the_score_is_linear_in_the_share_of_real_images(real):
    """The first pictures are of the victim, the rest are the same for all."""
    references = _references()
    mixed = np.where(np.arange(12)[None, :, None] < real, references.held_out, references.held_out[:1])
    shares_of_victims = [[shares(t)[i, :, i].mean() for i in range(CLIENTS)] for t in (mixed, references.held_out)]
    rate, ceiling = map(np.mean, shares_of_victims)
    expected = (rate - 1 / CLIENTS) / (ceiling - 1 / CLIENTS)
    assert identification_score(references, mixed).mean == pytest.approx(expected)
    assert (real == 0) == (abs(expected) < 1e-9)


@pytest.mark.parametrize("outside", [False, True])
def test_the_floor_is_chance(outside):
    """With auxiliary images of other people, and without any; both by the numbers, not by assumption."""
    auxiliary = SentImages(*(part[0] for part in _people(5))) if outside else None
    references = build_identification_references(Galleries(*_people(0)), pixel_space(), auxiliary=auxiliary)
    assert references.floor_images == ("auxiliary images" if outside else "mean image of each class over all galleries")
    assert references.floor.shape == (CLIENTS, 12 if outside else CLASSES, CLIENTS)
    assert identification_score(references, references.floor).mean == pytest.approx(0.0, abs=1e-9)
    rates = shares(references.floor)[np.arange(CLIENTS), :, np.arange(CLIENTS)].mean(axis=1)
    assert rates.mean() == pytest.approx(1 / CLIENTS)


# What is not measurable


def test_people_who_are_alike_are_not_measurable():
    """In 100 federations of people without identity at most four are taken for measurable; the score is None, not 0."""
    references = [_references(seed, identity=0.0, clients=5) for seed in range(100)]
    assert sum(found.reason is None for found in references) <= 4
    refused = next(found for found in references if found.reason is not None)
    found = measure_identification(refused, *_people(0, clients=5, of=1))
    assert found.score is None
    assert found.reason == refused.reason
    assert "expected above chance, 0.20" in found.reason or "expected at most 0.01" in found.reason


def test_the_p_value_of_the_ceiling_is_uniform_for_people_who_are_alike():
    """That of the symmetric table of all pairs is not: it finds identity where there is none."""
    halves, symmetric = [], []
    for seed in range(400):
        images = np.random.default_rng([3, seed]).normal(size=(6, 4, 2, 2, 1)).astype(np.float32)
        galleries = Galleries(images, np.zeros((6, 4), int))
        halves.append(permutation_p_value(distances_between_halves(pixel_space(), galleries), seed=0))
        symmetric.append(permutation_p_value(held_out_distances(pixel_space(), galleries).mean(axis=1), seed=0))
    assert kstest(halves, "uniform").pvalue > 0.01
    assert kstest(symmetric, "uniform").pvalue < 0.01


def test_halves_of_galleries_worked_out_by_hand():
    """Two images a client and class: class 0 at 0 and 1, and at 5 and 7; class 1 at 10 and 20, and at 40 and 40."""
    values = np.array([[0.0, 10.0, 1.0, 20.0], [5.0, 40.0, 40.0, 7.0]], np.float32)
    galleries = Galleries(values.reshape(2, 4, 1, 1, 1), np.array([[0, 1, 0, 1], [0, 1, 1, 0]]))
    tables = [distances_between_halves(pixel_space(), galleries, seed=seed) for seed in range(40)]
    for table in tables:
        np.testing.assert_allclose(np.diagonal(table), [(1 + 10) / 2, (2 + 0) / 2])
    across = {round(float(table[0, 1]), 3) for table in tables}
    assert across == {(near + far) / 2 for near in (5, 7, 4, 6) for far in (30, 20)}


def test_sorted_mixtures_of_people_have_no_identity():
    """Images of six people, sorted by person and dealt at random. Halves of every other image would find identities."""

    def galleries(seed):
        rng = np.random.default_rng([5, seed])
        people = np.repeat(rng.normal(size=(6, 16)), 8, axis=0)
        dealt = np.sort(rng.permutation(48).reshape(6, 8), axis=1)
        images = (people + 0.3 * rng.normal(size=(48, 16)))[dealt]
        return Galleries(images.reshape(6, 8, 4, 4, 1).astype(np.float32), np.zeros((6, 8), int))

    def alternate(images):
        first, others = images[:, ::2], Galleries(images[:, 1::2], np.zeros((6, 4), int))
        return distances_to_clients(pixel_space(), first, np.zeros((6, 4), int), others).mean(axis=1)

    dealt = [galleries(seed) for seed in range(300)]
    halves = [
        permutation_p_value(distances_between_halves(pixel_space(), own, seed=seed), seed=0)
        for seed, own in enumerate(dealt)
    ]
    assert kstest(halves, "uniform").pvalue > 0.01
    assert kstest([permutation_p_value(alternate(own.images), seed=0) for own in dealt], "uniform").pvalue < 1e-6


def test_fewer_than_five_clients_are_not_measurable_and_five_are():
    assert "fewer than 5 clients cannot reach it" in _references(clients=4).reason
    assert _references(clients=5).reason is None


# Ways to score without a leak of identity


@pytest.mark.parametrize("kind", ["black", "gray", "noise", "class mean", "a client", "an outsider", "extreme"])
def test_pictures_that_are_the_same_for_all_victims_are_exactly_chance(kind):
    """Even copies of the real images of one client, and pictures far outside of the range."""
    images, labels = _people(0)
    pictures = {
        "black": np.full((12, *SHAPE), -1.0),
        "gray": np.zeros((12, *SHAPE)),
        "noise": np.random.default_rng(7).normal(size=(12, *SHAPE)),
        "class mean": np.stack([images[labels == label].mean(axis=0) for label in labels[0]]),
        "a client": images[2],
        "an outsider": _people(9)[0][0],
        "extreme": 100 * np.random.default_rng(7).normal(size=(12, *SHAPE)),
    }[kind]
    found = measure_identification(_references(), _same_for_all(pictures), labels)
    _assert_chance(found.numbers)
    assert found.score.mean == pytest.approx(0.0, abs=1e-9)
    assert _holds(found.score, 0.0)


def test_brightness_contrast_and_noise_of_a_victims_own_do_not_identify_it():
    """Each victim has class means at its own level, contrast and noise, drawn without knowledge: chance on average."""
    references, labels = _references(), _people(0)[1]
    images = _people(0)[0]
    means = np.stack([images[labels == label].mean(axis=0) for label in labels[0]])
    rates, p_values = [], []
    for trial in range(60):
        rng = np.random.default_rng([7, trial])
        level, contrast, noise = (
            rng.uniform(-0.5, 0.5, CLIENTS),
            rng.uniform(0, 2, CLIENTS),
            rng.uniform(0, 0.5, CLIENTS),
        )
        scale, shift, grain = (value[:, None, None, None, None] for value in (contrast, level, noise))
        pictures = scale * means + shift + grain * rng.normal(size=(CLIENTS, *means.shape))
        found = measure_identification(references, pictures.astype(np.float32), labels)
        rates.append(found.numbers.identified.mean)
        p_values.append(found.numbers.p_value)
    error = np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - 1 / CLIENTS) < 3 * error
    assert np.mean(np.array(p_values) <= 0.05) < 0.2
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("times", [2, 5])
def test_more_copies_of_the_pictures_change_nothing(times):
    images, labels = _people(0, of=1)
    once = measure_identification(_references(), images, labels)
    often = measure_identification(_references(), np.repeat(images, times, 1), np.repeat(labels, times, 1))
    assert often.score[:3] == pytest.approx(once.score[:3])
    for name in ("identified_pooled", "mean_rank", "auc", "user_gap"):
        assert getattr(often.numbers, name).mean == pytest.approx(getattr(once.numbers, name).mean)
    assert often.numbers.p_value == once.numbers.p_value


def test_more_noise_pictures_do_not_score():
    """A thousand pictures of each victim: the rate comes nearer to chance, not above it."""
    references, rng = _references(), np.random.default_rng(7)
    for count in (12, 1000):
        labels = np.tile(np.resize(_people(0)[1][0], count), (CLIENTS, 1))
        found = measure_identification(references, rng.normal(size=(CLIENTS, count, *SHAPE)), labels)
        assert abs(found.numbers.identified.mean - 1 / CLIENTS) < 3 / math.sqrt(CLIENTS * count)


def test_a_measure_by_distance_alone_would_be_fooled():
    """Why the rate and not the distance is scored: a class mean is nearer to the victim than its own images are."""
    references = _references()
    images, labels = _people(0)
    means = _same_for_all(np.stack([images[labels == label].mean(axis=0) for label in labels[0]]))
    table = distances_to_clients(references.space, means, labels, references.galleries)
    own = np.arange(CLIENTS)
    assert table[own, :, own].mean() < references.held_out[own, :, own].mean()
    assert identification_score(references, table).mean == pytest.approx(0.0, abs=1e-9)


# Controls


def test_derangements_move_every_client_and_are_uniform():
    """Four clients have nine derangements."""
    drawn = [tuple(derangement(4, seed=seed)) for seed in range(900)]
    assert not any(order[i] == i for order in drawn for i in range(4))
    counts = [drawn.count(order) for order in set(drawn)]
    assert len(counts) == 9
    assert sum((count - 100) ** 2 / 100 for count in counts) < 26.1
    with pytest.raises(ValueError, match=r"^clients=1: expected at least 2$"):
        derangement(1, seed=0)


def test_shuffled_identities_identify_below_chance_where_the_attack_works_and_chance_on_average():
    """The closed form equals the mean over derangements; over all permutations the mean is exactly chance."""
    references = _references()
    table = distances_to_clients(references.space, *_people(0, of=1), references.galleries)
    labels = references.galleries.labels
    rate = identification_numbers(table, labels, seed=0).identified.mean
    others = identified_as_others(table, seed=0)
    assert others.mean == pytest.approx((1 - rate) / (CLIENTS - 1))
    assert others.high < 1 / CLIENTS < rate
    own = np.arange(CLIENTS)
    cyclic = [shares(scored_as(table, np.roll(own, shift)))[own, :, own].mean() for shift in range(CLIENTS)]
    assert np.mean(cyclic[1:]) == pytest.approx(others.mean)
    assert np.mean(cyclic) == pytest.approx(1 / CLIENTS)


def test_noise_is_within_the_interval_of_chance():
    """In at least 17 of 20 draws for an interval of 95% over six victims."""
    references, labels = _references(), _people(0)[1]
    inside = 0
    for trial in range(20):
        noise = np.random.default_rng([7, trial]).uniform(-1, 1, (CLIENTS, 12, *SHAPE))
        inside += _holds(measure_identification(references, noise, labels).numbers.identified, 1 / CLIENTS)
    assert inside >= 17


def test_a_claimed_victim_outside_of_the_federation():
    """Pictures of clients show no outsider; pictures of the outsiders themselves do."""
    galleries, outsiders = Galleries(*_people(0)), Galleries(*_people(0, clients=20))
    outside = Galleries(outsiders.images[CLIENTS:], outsiders.labels[CLIENTS:])
    images, labels = _people(0, of=1)
    table, to_outsiders = (distances_to_clients(pixel_space(), images, labels, part) for part in (galleries, outside))
    found = identified_as_outsiders(table, to_outsiders, seed=0)
    assert found.mean < 2 / CLIENTS
    assert found.high < identification_numbers(table, labels, seed=0).identified.low
    shown = np.repeat(held_out_distances(pixel_space(), outside)[:1], CLIENTS, axis=0)
    of_outsider = distances_to_clients(pixel_space(), _same_for_all(outside.images[0]), labels, galleries)
    assert identified_as_outsiders(of_outsider, shown[..., :1], seed=0).mean > 0.6


def test_one_outsider_worked_out_by_hand():
    """It takes the victim's place: nearest for the first picture, tied for the second."""
    table = np.array([[[1.0, 3.0], [1.0, 3.0]], [[3.0, 1.0], [3.0, 1.0]]])
    found = identified_as_outsiders(table, np.array([[[2.0], [3.0]], [[4.0], [4.0]]]), seed=0)
    assert found.values == pytest.approx((0.75, 0.0))
    second = identified_as_outsiders(table[1:], np.array([[[4.0], [4.0]]]), victims=np.array([1]), seed=0)
    assert second.values == pytest.approx((0.0,))


# Numbers beside the identity


def test_copies_of_records_have_a_record_gap_and_new_images_of_the_person_have_none():
    sent_images, labels = _people(0, of=1)
    references, sent = _references(), _sent(sent_images, labels)
    copies = measure_identification(references, sent_images, labels, sent=sent)
    assert copies.record_gap.low > 0.0
    assert copies.similarity.mean == pytest.approx(1.0)
    assert copies.control_similarity.high < 0.9
    fresh = measure_identification(references, _people(0, of=2)[0], labels, sent=sent)
    assert _holds(fresh.record_gap, 0.0)
    assert fresh.score.low > 0.5


def test_the_record_gap_does_not_depend_on_how_much_was_sent():
    """Two to twelve images of each class: unequal numbers do not look like a leak of records."""
    images, labels = _people(0, of=1, count=12)
    sent = [SentImages(x[:: 1 + k], y[:: 1 + k]) for k, (x, y) in enumerate(zip(images, labels, strict=True))]
    found = measure_identification(_references(), *_people(0, of=2), sent=sent)
    assert _holds(found.record_gap, 0.0)


def test_a_record_gap_worked_out_by_hand():
    """Pictures of one pixel; class 1 was not sent by client 1, so its picture does not count."""

    def images(*values):
        return np.array(values, np.float32).reshape(*np.shape(values), 1, 1, 1)

    classes = np.tile([0, 0, 1, 1], (2, 1))
    galleries = Galleries(images([0.0, 0.2, 0.5, 0.7], [0.4, 0.6, 0.5, 0.9]), classes)
    space, labels = pixel_space(), np.array([[0, 1], [0, 1]])
    pictures = images([0.0, 0.5], [0.5, 0.5])
    sent = [SentImages(images(0.3, 0.6), np.array([0, 1])), SentImages(images(0.5), np.array([0]))]
    found = distances_to_clients(space, pictures, labels, galleries)[[0, 1], :, [0, 1]]
    np.testing.assert_allclose(found, [[0.1, 0.1], [0.1, 0.2]], atol=1e-6)
    np.testing.assert_allclose(distances_to_sent(space, pictures, labels, sent), [[0.3, 0.1], [0.0, np.nan]], atol=1e-6)


def test_the_judge_sees_all_pictures_in_order():
    """A judge that reads the class from the first pixel is right for three of twelve pictures of one victim."""
    images, labels = _people(0, of=1)
    images[..., 0, 0, 0] = labels / 10
    images[2, :9, 0, 0, 0] = 0.9
    found = measure_identification(
        _references(), images, labels, predict=lambda x: np.rint(10 * x[:, 0, 0, 0]).astype(int)
    )
    assert found.category_accuracy.values == (1.0, 1.0, 0.25, 1.0, 1.0, 1.0)
    assert found.record_gap is None
    assert found.similarity is None


# Bad input


def _changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("galleries", "message"),
    [
        (lambda x, y: (x[0], y), r"galleries of shapes \(12, 8, 8, 1\) and \(6, 12\): expected \[K, G, H, W, C\]"),
        (lambda x, y: (x, y[:, :3]), r"galleries of shapes .*: expected"),
        (lambda x, y: (x[:1], y[:1]), r"K at least 2$"),
        (lambda x, y: (_changed(x, (1, 2), np.nan), y), r"galleries: not finite"),
        (lambda x, y: (x, _changed(y, (3, 0), 1)), r"galleries: 3 to 4 images of class 0 at a client, expected"),
        (lambda x, y: (x[:, ::4], y[:, ::4]), r"galleries: 1 to 1 images of class 0 at a client, expected .* least 2$"),
    ],
)
def test_galleries_that_do_not_fit(galleries, message):
    with pytest.raises(ValueError, match=message):
        build_identification_references(Galleries(*galleries(*_people(0))), pixel_space())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: {"images": x[:5], "labels": y[:5]}, r"^images of shape \(5, .*: expected those of 6 victims$"),
        (lambda x, y: {"images": x[..., :4, :], "labels": y}, r"^images of shape .*: expected \[K, M, \*\(8, 8, 1\)\]"),
        (lambda x, y: {"images": x, "labels": y[0]}, r"^images of shape .* with labels of shape \(12,\)"),
        (lambda x, y: {"images": x[:, :0], "labels": y[:, :0]}, r"^images of shape \(6, 0"),
        (lambda x, y: {"images": x * np.inf, "labels": y}, r"^images: not finite"),
        (lambda x, y: {"images": x, "labels": y + 1}, r"^labels=\[3\]: expected classes of the galleries$"),
        (lambda x, y: {"images": x, "labels": y, "sent": _sent(x, y)[:2]}, r"^sent of 2 clients: expected 6$"),
        (lambda x, y: {"images": x, "labels": y, "sent": _sent(x[..., :2, :], y)}, r"^sent\[0\] of shape"),
    ],
)
def test_pictures_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        measure_identification(_references(), **change(*_people(0)))


def test_an_embedding_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"^distances: not finite, expected finite vectors from the space$"):
        _references(space=cosine_space("broken", lambda images: np.full((len(images), 2), np.nan)))
