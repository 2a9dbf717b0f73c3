"""Partition of the training images among the participants, and a separate pool for the judge.

In every scheme the participants own disjoint images, and the adversary owns no image of its target class. The only
exception is 'centralised', where one participant owns all images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

import numpy as np

from gan_leak.data.class_names import ClassLookup, find_class, find_range, make_lookup
from gan_leak.data.images import to_float
from gan_leak.machine import check_fits
from gan_leak.types import FederationData, PyTree

# Of one entry of --participant_classes.
MOST_PARTICIPANTS = 100_000
SCHEMES = ("by_class", "iid", "dirichlet", "centralised")


def parse_participant_classes(text: str, classes: int | Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Parse the classes of each participant: '0-4;5-9' -> ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)).

    Participants are separated by ';', classes by ','; 'a-b' is a range with both ends. An empty entry is a participant
    without data. 'each' before classes makes one participant for each: 'each 0-2;' -> ((0,), (1,), (2,), ()). 'N of'
    before classes makes N participants: '2 of 0,1;2' -> ((0, 1), (0, 1), (2,)). Returns the sorted classes of each
    participant.

    classes: their names in order, or their number. A class is given by its number or its name, see
    ``class_names.find_class``; a range is given by numbers. A name with ',' or ';' can only be given by its number.

    Raises ValueError for another text, an empty one, a repeated class in one entry, an unknown class, and a text that
    may mean two classes.

    >>> parse_participant_classes("0-2;3,4;", classes=5)
    ((0, 1, 2), (3, 4), ())
    """
    if not text.strip():
        raise ValueError(f"participant_classes={text!r}, expected at least one participant, such as '0-4;5-9'")
    lookup = make_lookup(tuple(map(str, range(classes))) if isinstance(classes, int) else classes)
    participants: list[tuple[int, ...]] = []
    for entry in text.split(";"):
        counted = re.fullmatch(r"\s*(each|[0-9]{1,9}\s+of)\s(.*)", entry)
        if counted is None:
            participants.append(_parse_entry(entry.strip(), text, lookup))
            continue
        if entry.strip() in lookup.by_name:
            raise ValueError(
                f"participant_classes={text!r}: {entry.strip()!r} is the name of a class, expected its number"
            )
        word, classes_of_each = counted[1], _parse_entry(counted[2].strip(), text, lookup)
        if word == "each" and not classes_of_each:
            raise ValueError(f"participant_classes={text!r}: {entry.strip()!r}, expected classes after 'each'")
        if word == "each":
            participants.extend((label,) for label in classes_of_each)
        elif 1 <= (number := int(word.split()[0])) <= MOST_PARTICIPANTS:
            participants.extend([classes_of_each] * number)
        else:
            raise ValueError(
                f"participant_classes={text!r}: {entry.strip()!r}, expected 1 to {MOST_PARTICIPANTS} participants"
            )
    return tuple(participants)


def split_off_judge_pool(labels: np.ndarray, judge_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of labels [N] into (federation_indices, judge_indices), both sorted, together all of them.

    The judge gets ``judge_samples`` of them, at most half of all and half of any class, in the proportions of the
    classes and evenly spaced within each. The pool is not random, so one judge serves all seeds.

    Raises ValueError if ``judge_samples`` is negative.

    >>> labels = np.repeat([0, 1], 4)
    >>> federation_indices, judge_indices = split_off_judge_pool(labels, judge_samples=2)
    >>> judge_indices
    array([2, 6])
    """
    if judge_samples < 0:
        raise ValueError(f"judge_samples={judge_samples}, expected at least 0")
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = np.minimum(_proportional_quotas(counts, min(judge_samples, len(labels) // 2)), counts // 2)
    is_judge = np.zeros(len(labels), bool)
    for label, count, quota in zip(classes, counts, quotas, strict=True):
        spaced = (2 * np.arange(quota) + 1) * count // (2 * max(quota, 1))
        is_judge[np.flatnonzero(labels == label)[spaced]] = True
    return np.flatnonzero(~is_judge), np.flatnonzero(is_judge)


def partition(
    labels: np.ndarray,
    *,
    scheme: str,
    participant_classes: Sequence[Sequence[int]],
    samples_per_participant: int,
    adversary: int,
    target_class: int,
    dirichlet_concentration: float,
    rng: np.random.Generator,
    candidates: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Divide the samples of labels [N] among P participants; returns the sorted indices of each, disjoint.

    - 'by_class': each class is divided evenly, at random, among the participants that list it.
    - 'iid': all samples are divided evenly, at random, among all participants.
    - 'dirichlet': each class is divided among all participants in proportions drawn from a symmetric Dirichlet
      distribution (as Yurochkin et al. 2019, arXiv 1905.12022).
    - 'centralised': the only participant is the adversary and owns all classes that it lists, also the target class.
      Nothing is private, and attacks can be compared with equal knowledge (Hitaj et al. 2017, section 9.1).

    In 'iid' and 'dirichlet' only the number of entries of ``participant_classes`` matters. There the adversary's images
    of the target class are discarded.

    ``samples_per_participant`` > 0 limits a participant to a random subset in the proportions of its classes; 0 keeps
    all. ``candidates`` are the indices to divide (None = all).

    Raises ValueError for arguments out of range, if the adversary owns the target class, and if a participant gets no
    image, unless it is the adversary or, in 'by_class', lists no class.

    >>> owned = partition(
    ...     np.array([0, 1, 2, 0, 1, 2]),
    ...     scheme="by_class",
    ...     participant_classes=((0, 1), (2,)),
    ...     samples_per_participant=0,
    ...     adversary=1,
    ...     target_class=0,
    ...     dirichlet_concentration=1.0,
    ...     rng=np.random.default_rng(0),
    ... )
    >>> owned
    (array([0, 1, 3, 4]), array([2, 5]))
    """
    labels = np.asarray(labels)
    participants = len(participant_classes)
    _check_arguments(scheme, participants, samples_per_participant, adversary, dirichlet_concentration)
    candidates = _checked_candidates(candidates, len(labels))
    if scheme in ("by_class", "centralised"):
        if scheme == "by_class" and target_class in participant_classes[adversary]:
            raise ValueError(
                f"target_class={target_class} is owned by the adversary {adversary}, expected another class"
            )
        shares = _divide_by_class(labels, candidates, participant_classes, rng)
    elif scheme == "iid":
        shares = tuple(np.array_split(rng.permutation(candidates), participants))
    else:
        shares = _divide_by_dirichlet(labels, candidates, participants, dirichlet_concentration, rng)
    if scheme in ("iid", "dirichlet"):
        own = shares[adversary]
        shares = (*shares[:adversary], own[labels[own] != target_class], *shares[adversary + 1 :])
    result = tuple(np.sort(_cap(labels, share, samples_per_participant, rng)) for share in shares)
    _check_shares(result, scheme, participant_classes, adversary)
    if scheme != "centralised":
        check_adversary_ignorance(labels[result[adversary]], target_class)
    return result


def _check_shares(
    shares: Sequence[np.ndarray], scheme: str, participant_classes: Sequence[Sequence[int]], adversary: int
) -> None:
    for participant, share in enumerate(shares):
        may_be_empty = participant == adversary or (scheme == "by_class" and not participant_classes[participant])
        if not len(share) and not may_be_empty:
            raise ValueError(
                f"participant {participant} gets no image with partition={scheme!r}, expected at least one; "
                "use fewer participants, more data or a less skewed partition"
            )


def check_adversary_ignorance(labels_of_adversary: np.ndarray, target_class: int) -> None:
    """Raise ValueError if the labels [N] of the adversary's own images contain the target class."""
    owned = int(np.sum(np.asarray(labels_of_adversary) == target_class))
    if owned:
        raise ValueError(f"the adversary owns {owned} images of target_class={target_class}, expected none")


def gather(
    images: np.ndarray,
    labels: np.ndarray,
    indices_per_participant: Sequence[np.ndarray],
    *,
    only: Collection[int] | None = None,
) -> FederationData:
    """Collect the images uint8 [M, H, W, C] and labels [M] of P participants, padded to the longest.

    Returns NumPy arrays: images float32 [P, N, H, W, C] in [-1, 1], labels int32 [P, N], sizes int32 [P]. Padding is 0.
    With ``only``, the images and labels of all other participants are zeros, which take no memory.

    Raises ValueError if there is no participant or no image, and if the images do not fit into memory.

    >>> images, labels = np.zeros((6, 32, 32, 1), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    >>> data = gather(images, labels, (np.array([0, 1, 3, 4]), np.array([2, 5])))
    >>> data.labels
    array([[0, 1, 0, 1],
           [2, 2, 0, 0]], dtype=int32)
    >>> data.sizes
    array([4, 2], dtype=int32)
    """
    sizes = np.array([len(indices) for indices in indices_per_participant], np.int32)
    if not sizes.size or not sizes.max():
        raise ValueError(f"sizes={sizes.tolist()}, expected at least one participant with an image")
    kept = len(sizes) if only is None else len(only)
    what = f"participant_classes: {len(sizes)} participants with room for {sizes.max()} images each need"
    check_fits(what, 4 * kept * int(sizes.max()) * math.prod(images.shape[1:]))
    padded_images = np.zeros((len(sizes), sizes.max(), *images.shape[1:]), np.float32)
    padded_labels = np.zeros((len(sizes), sizes.max()), np.int32)
    for participant, indices in enumerate(indices_per_participant):
        if only is not None and participant not in only:
            continue
        padded_images[participant, : len(indices)] = to_float(images[indices])
        padded_labels[participant, : len(indices)] = labels[indices]
    arrays: PyTree = (padded_images, padded_labels, sizes)
    return FederationData(*arrays)


def _parse_entry(entry: str, text: str, lookup: ClassLookup) -> tuple[int, ...]:
    classes: list[int] = []
    for part in entry.split(",") if entry else ():
        try:
            several = find_range(lookup, part)
            classes.extend([find_class(lookup, part)] if several is None else several)
        except ValueError as error:
            raise ValueError(f"participant_classes={text!r}: {error}") from error
    if len(set(classes)) != len(classes):
        raise ValueError(f"participant_classes={text!r}: {entry!r} names a class twice, expected once")
    return tuple(sorted(classes))


def _check_arguments(scheme: str, participants: int, samples: int, adversary: int, concentration: float) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"partition={scheme!r}, expected one of {SCHEMES}")
    if not 0 <= adversary < participants:
        raise ValueError(f"adversary={adversary}, expected the index of one of the {participants} participants")
    if scheme == "centralised" and participants != 1:
        raise ValueError(f"partition='centralised': {participants} participants, expected 1")
    if samples < 0:
        raise ValueError(f"samples_per_participant={samples}, expected at least 0")
    if scheme == "dirichlet" and not (math.isfinite(concentration) and concentration > 0):
        raise ValueError(f"dirichlet_concentration={concentration}, expected a positive number")


def _checked_candidates(candidates: np.ndarray | None, count: int) -> np.ndarray:
    if candidates is None:
        return np.arange(count)
    candidates = np.asarray(candidates, dtype=np.intp)
    if len(candidates) and (candidates.min() < 0 or candidates.max() >= count):
        raise ValueError(f"candidates from {candidates.min()} to {candidates.max()}, expected within 0..{count - 1}")
    if len(np.unique(candidates)) != len(candidates):
        raise ValueError("candidates hold an index twice, expected each at most once")
    return candidates


def _divide_by_class(
    labels: np.ndarray, candidates: np.ndarray, participant_classes: Sequence[Sequence[int]], rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    shares: list[list[np.ndarray]] = [[] for _ in participant_classes]
    for label in sorted({label for classes in participant_classes for label in classes}):
        owners = [owner for owner, classes in enumerate(participant_classes) if label in classes]
        shuffled = rng.permutation(candidates[labels[candidates] == label])
        for owner, share in zip(owners, np.array_split(shuffled, len(owners)), strict=True):
            shares[owner].append(share)
    return tuple(np.concatenate(share) if share else np.empty(0, np.intp) for share in shares)


def _divide_by_dirichlet(
    labels: np.ndarray, candidates: np.ndarray, participants: int, concentration: float, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    shares: list[list[np.ndarray]] = [[np.empty(0, np.intp)] for _ in range(participants)]
    for label in np.unique(labels[candidates]):
        shuffled = rng.permutation(candidates[labels[candidates] == label])
        proportions = rng.dirichlet(np.full(participants, concentration))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(shuffled)).astype(np.intp)
        for participant, share in enumerate(np.split(shuffled, cuts)):
            shares[participant].append(share)
    return tuple(np.concatenate(share) for share in shares)


def _cap(labels: np.ndarray, share: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random subset of at most ``samples`` indices in the proportions of the classes (0 = all)."""
    if samples == 0 or len(share) <= samples:
        return share
    classes, counts = np.unique(labels[share], return_counts=True)
    quotas = _proportional_quotas(counts, samples)
    kept = [
        rng.permutation(share[labels[share] == label])[:quota] for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.concatenate(kept)


def _proportional_quotas(counts: np.ndarray, total: int) -> np.ndarray:
    """Divide ``total`` (at most the sum of ``counts``) in proportion to ``counts``, by largest remainder."""
    if not len(counts):
        return np.zeros(0, np.intp)
    exact = counts.astype(np.int64) * total
    quotas, remainders = exact // counts.sum(), exact % counts.sum()
    by_remainder = np.argsort(-remainders, kind="stable")
    quotas[by_remainder[: total - quotas.sum()]] += 1
    return quotas
