"""Division of a data set by owner: each client has the images of its own people, who are split into sent and held out.

The question of user-level leakage is whether reconstructions show the people of one client. So clients share no owner,
what a client trains on and what identifies its owners share no image and no original image, and everything that could
tell clients apart without looking at an image is equal: numbers of images, classes of the galleries, and the series in
which the images were collected.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class OwnerSplit(NamedTuple):
    """A federation of K clients, as indices into the training part; all index arrays are sorted and disjoint.

    owners: int64 [K, m], the owners of each client; [K, 0] if clients are mixtures of owners. sent: what each client
    trains on. held_out: the gallery of each client, images of the same owners that it never trains on. auxiliary: all
    images of the people that the adversary has. third_parties: all images of people that neither the federation nor the
    adversary has.
    """

    owners: np.ndarray
    sent: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]
    auxiliary: np.ndarray
    third_parties: np.ndarray


class _Sizes(NamedTuple):
    """Images of one owner: in each class, and whether the sent ones are so many of each class or in total."""

    sent_per_class: int
    held_out_per_class: int
    balanced: bool


class _Share(NamedTuple):
    """The images of one owner. shortage: what the owner lacks, in words; empty if both sides are complete."""

    sent: np.ndarray
    held_out: np.ndarray
    shortage: str = ""


class _Named(NamedTuple):
    """The owners of each group that the caller named; None for a group that is drawn."""

    clients: np.ndarray | None
    auxiliary: np.ndarray | None
    third_parties: np.ndarray | None

    def all(self) -> np.ndarray:
        """The owners of all groups together."""
        return np.concatenate([np.empty(0, np.int64), *(group.ravel() for group in self if group is not None)])


def split_by_owner(
    labels: np.ndarray,
    owners: np.ndarray | None,
    *,
    clients: int,
    owners_per_client: int,
    sent_per_class: int,
    held_out_per_class: int,
    balanced: bool,
    auxiliary_owners: int | Sequence[int],
    third_party_owners: int | Sequence[int],
    rng: np.random.Generator,
    series: np.ndarray | None = None,
    only_series: int | None = None,
    records: np.ndarray | None = None,
    client_owners: Sequence[Sequence[int]] | None = None,
) -> OwnerSplit:
    """Divide the samples of labels [N] and owners [N] among K clients with m owners each, and people outside.

    Each owner of a client holds out ``held_out_per_class`` images of every class and sends ``sent_per_class`` of every
    class. If not ``balanced``, an owner sends as many images in total, whatever their class, drawn from all that it
    does not hold out. So all clients send equally many images, and their galleries have equal class counts.

    series: int [N], the series of each image. All owners are of one series: of ``only_series``, or of the only one that
    there is. A federation of two series would identify clients by the series. records: int [N], the original image of
    each image (None = each its own); no original has images on both sides. Originals are drawn one by one, for the
    gallery first, so this is exact if all originals have one image, or one of each class.

    Owners are drawn at random among those with enough images. ``auxiliary_owners`` and ``third_party_owners`` are the
    numbers of owners to draw, or the owners. client_owners: K x m owners to take instead of drawing them. The drawn
    clients, and the images that an owner sends, do not depend on the numbers of other people.

    Raises ValueError without owners, for mixed series, for fewer owners than needed, for a named owner with too few
    images of a class, for an owner that is named twice or unknown, and for arguments out of range.

    >>> split = split_by_owner(
    ...     np.tile([0, 1], 12),
    ...     np.repeat([5, 6, 7], 8),
    ...     clients=2,
    ...     owners_per_client=1,
    ...     sent_per_class=2,
    ...     held_out_per_class=1,
    ...     balanced=True,
    ...     auxiliary_owners=1,
    ...     third_party_owners=0,
    ...     rng=np.random.default_rng(0),
    ...     client_owners=[[7], [5]],
    ... )
    >>> split.sent
    (array([16, 17, 20, 21]), array([0, 1, 2, 5]))
    >>> split.auxiliary
    array([ 8,  9, 10, 11, 12, 13, 14, 15])
    """
    sizes = _Sizes(sent_per_class, held_out_per_class, balanced)
    _check_numbers(clients, owners_per_client, sizes)
    labels, owners, records = _checked_arrays(labels, owners, records)
    named = _named_groups(clients, owners_per_client, client_owners, auxiliary_owners, third_party_owners)
    _check_named(named, owners)
    in_series = _in_one_series(owners, series, only_series, named)
    of_order, of_shares = rng.spawn(2)
    shares = _draw_shares(labels, owners, records, in_series, sizes, of_shares)
    needed = (
        clients * owners_per_client if named.clients is None else 0,
        _number_to_draw(auxiliary_owners),
        _number_to_draw(third_party_owners),
    )
    taken = set(named.all().tolist())
    found = of_order.permutation(np.unique(owners)).tolist()
    order = [owner for owner in found if owner in shares and owner not in taken]
    enough = [owner for owner in order if not shares[owner].shortage]
    _check_enough(needed, enough, shares, order, clients, owners_per_client)
    # Third parties come from the end, so that neither group outside the federation depends on the size of the other.
    chosen = enough[: needed[0]] if named.clients is None else named.clients.ravel().tolist()
    by_client = np.sort(np.array(chosen, np.int64).reshape(clients, owners_per_client), axis=1)
    auxiliary = enough[needed[0] : needed[0] + needed[1]] if named.auxiliary is None else named.auxiliary
    third = enough[len(enough) - needed[2] :] if named.third_parties is None else named.third_parties
    for owner in by_client.ravel().tolist():
        if shortage := shares[owner].shortage:
            raise ValueError(f"client_owners: owner {owner} has {shortage}")
    return OwnerSplit(
        by_client,
        tuple(_joined([shares[owner].sent for owner in group]) for group in by_client.tolist()),
        tuple(_joined([shares[owner].held_out for owner in group]) for group in by_client.tolist()),
        np.flatnonzero(in_series & np.isin(owners, auxiliary)),
        np.flatnonzero(in_series & np.isin(owners, third)),
    )


def split_iid(
    split: OwnerSplit, labels: np.ndarray, *, rng: np.random.Generator, records: np.ndarray | None = None
) -> OwnerSplit:
    """A control without owners: the images of the clients of ``split`` are dealt to the clients at random.

    What is sent stays sent, and what is held out stays held out; each is dealt on its own, class by class. So each
    client has as many images of each class as before, but its gallery says nothing about what it sends, and clients
    cannot be identified better than by chance, 1/K. labels, records: as in ``split_by_owner``; images of one original
    stay together. People outside the federation stay as they are.

    >>> owned = OwnerSplit(
    ...     np.array([[5], [6]]),
    ...     (np.array([0, 1]), np.array([4, 5])),
    ...     (np.array([2, 3]), np.array([6, 7])),
    ...     np.empty(0, int),
    ...     np.empty(0, int),
    ... )
    >>> mixed = split_iid(owned, np.array([0, 1, 0, 1, 0, 1, 0, 1]), rng=np.random.default_rng(2))
    >>> mixed.sent, mixed.owners.shape
    ((array([1, 4]), array([0, 5])), (2, 0))
    """
    labels = np.asarray(labels)
    records = np.arange(len(labels)) if records is None else np.asarray(records)
    of_sent, of_held_out = rng.spawn(2)
    return split._replace(
        owners=np.empty((len(split.sent), 0), np.int64),
        sent=_deal(split.sent, labels, records, of_sent),
        held_out=_deal(split.held_out, labels, records, of_held_out),
    )


def _draw_shares(
    labels: np.ndarray,
    owners: np.ndarray,
    records: np.ndarray,
    in_series: np.ndarray,
    sizes: _Sizes,
    rng: np.random.Generator,
) -> dict[int, _Share]:
    """The share of each owner with an image in the series; each owner has a random stream of its own."""
    found, classes = np.unique(labels, return_inverse=True)
    kinds = classes if sizes.balanced else np.zeros_like(classes)
    places = [sizes.sent_per_class] * len(found) if sizes.balanced else [sizes.sent_per_class * len(found)]
    shares = {}
    everyone = _by_value(np.arange(len(owners)), owners)
    for of_owner, stream in zip(everyone, rng.spawn(len(everyone)), strict=True):
        if not len(indices := of_owner[in_series[of_owner]]):
            continue
        groups = _by_value(indices, records)
        groups = [groups[place] for place in stream.permutation(len(groups))]
        held_out, rest, missing_held_out = _fill(groups, classes, [sizes.held_out_per_class] * len(found))
        sent, _, missing_sent = _fill(rest, kinds, places)
        shares[int(owners[indices[0]])] = _Share(sent, held_out, _shortage(missing_sent, missing_held_out, sizes))
    return shares


def _fill(
    groups: Sequence[np.ndarray], kinds: np.ndarray, places: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Take images group by group while there are places for their kind; a group with one taken image is used up.

    groups: index arrays. kinds: int [N]. places: of each kind. Returns the sorted indices, the groups that are left and
    the places that are left.
    """
    left = list(places)
    taken: list[int] = []
    rest: list[np.ndarray] = []
    for group in groups:
        before = len(taken)
        for index in group.tolist():
            if left[kind := int(kinds[index])]:
                left[kind] -= 1
                taken.append(index)
        if len(taken) == before:
            rest.append(group)
    return np.sort(np.array(taken, np.intp)), rest, left


def _shortage(missing_sent: Sequence[int], missing_held_out: Sequence[int], sizes: _Sizes) -> str:
    sides = f"{sizes.sent_per_class} sent and {sizes.held_out_per_class} held out"
    if sizes.balanced:
        needed = sizes.sent_per_class + sizes.held_out_per_class
        missing = [sent + held_out for sent, held_out in zip(missing_sent, missing_held_out, strict=True)]
        expected = f"expected {needed} ({sides})"
    else:
        needed, missing = sizes.held_out_per_class, list(missing_held_out)
        expected = f"expected {needed} held out"
    if most := max(missing):
        return f"{needed - most} suitable images of class {missing.index(most)}, {expected}"
    if not sizes.balanced and missing_sent[0]:
        total = sizes.sent_per_class * len(missing_held_out)
        return f"{total - missing_sent[0]} suitable images that are not held out, expected {total} to send"
    return ""


def _deal(
    sides: Sequence[np.ndarray], labels: np.ndarray, records: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Exchange the originals of equal classes among the clients at random."""
    places: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = collections.defaultdict(list)
    for client, indices in enumerate(sides):
        for group in _by_value(indices, records):
            places[tuple(sorted(labels[group].tolist()))].append((client, group))
    dealt: list[list[np.ndarray]] = [[] for _ in sides]
    for classes in sorted(places):
        alike = places[classes]
        for (client, _), other in zip(alike, rng.permutation(len(alike)), strict=True):
            dealt[client].append(alike[other][1])
    return tuple(_joined(groups) for groups in dealt)


def _by_value(indices: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """The indices in groups of equal values, by increasing value; values: int [N]."""
    order = indices[np.argsort(values[indices], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _joined(groups: Sequence[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.empty(0, np.intp), *groups]))


def _check_numbers(clients: int, owners_per_client: int, sizes: _Sizes) -> None:
    numbers = {
        "clients": clients,
        "owners_per_client": owners_per_client,
        "sent_per_class": sizes.sent_per_class,
        "held_out_per_class": sizes.held_out_per_class,
    }
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def _checked_arrays(
    labels: np.ndarray, owners: np.ndarray | None, records: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if owners is None:
        raise ValueError("owners=None: expected the owner of each image, but the data have none")
    labels, owners = np.asarray(labels), np.asarray(owners)
    if not labels.size:
        raise ValueError(f"labels: {list(labels.shape)}, expected at least one image")
    records = np.arange(len(labels)) if records is None else np.asarray(records)
    for name, array in (("owners", owners), ("records", records)):
        if not np.issubdtype(array.dtype, np.integer) or array.shape != labels.shape:
            raise ValueError(f"{name}: {array.dtype} {list(array.shape)}, expected integers [{len(labels)}]")
    order = np.lexsort((owners, records))
    shared = (np.diff(records[order]) == 0) & (np.diff(owners[order]) != 0)
    if shared.any():
        record = records[order][:-1][shared][0]
        raise ValueError(f"records={record}: images of two owners, expected one owner of each original image")
    return labels, owners, records


def _named_groups(
    clients: int,
    owners_per_client: int,
    client_owners: Sequence[Sequence[int]] | None,
    auxiliary_owners: int | Sequence[int],
    third_party_owners: int | Sequence[int],
) -> _Named:
    if client_owners is not None:
        lengths = [len(group) for group in client_owners]
        if lengths != [owners_per_client] * clients:
            raise ValueError(
                f"client_owners: {lengths} owners of the clients, expected {owners_per_client} for each of {clients}"
            )
    outside = []
    for name, group in (("auxiliary_owners", auxiliary_owners), ("third_party_owners", third_party_owners)):
        if isinstance(group, int) and group < 0:
            raise ValueError(f"{name}={group}: expected at least 0")
        outside.append(None if isinstance(group, int) else np.array(group, np.int64))
    return _Named(None if client_owners is None else np.array(client_owners, np.int64), *outside)


def _number_to_draw(group: int | Sequence[int]) -> int:
    return group if isinstance(group, int) else 0


def _check_named(named: _Named, owners: np.ndarray) -> None:
    """Raise ValueError for an owner that is named twice or is not in the data."""
    known = set(owners.tolist())
    places: dict[int, str] = {}
    clients = [] if named.clients is None else named.clients.tolist()
    groups = [("client_owners", f"client {client}", group) for client, group in enumerate(clients)]
    for name, group in (("auxiliary_owners", named.auxiliary), ("third_party_owners", named.third_parties)):
        groups.append((name, f"the {name.replace('_', ' ')}", [] if group is None else group.tolist()))
    for name, place, group in groups:
        for owner in group:
            if owner not in known:
                raise ValueError(f"{name}: owner {owner} has no image, expected owners in the data")
            if owner in places:
                raise ValueError(
                    f"{name}: owner {owner} belongs to {place} and to {places[owner]}, expected each owner once"
                )
            places[owner] = place


def _in_one_series(owners: np.ndarray, series: np.ndarray | None, only_series: int | None, named: _Named) -> np.ndarray:
    """Which images [N] are of the series of the federation."""
    if series is None:
        if only_series is not None:
            raise ValueError(f"series={only_series}: expected none, since the data have no series")
        return np.ones(len(owners), bool)
    series = np.asarray(series)
    if series.shape != owners.shape:
        raise ValueError(f"series: {series.dtype} {list(series.shape)}, expected integers [{len(owners)}]")
    of_named = np.isin(owners, named.all())
    # Named clients decide the series from which other people are drawn.
    relevant = of_named if named.clients is not None else np.ones(len(owners), bool)
    found = np.unique(series[relevant]).tolist()
    if only_series is None:
        if len(found) > 1:
            raise ValueError(f"series: mixed series {found}, expected owners of one series")
        only_series = found[0]
    if not (in_series := series == only_series).any():
        raise ValueError(f"series={only_series}: expected one of {np.unique(series).tolist()}")
    if (outside := of_named & ~in_series).any():
        raise ValueError(
            f"series={only_series}: mixed series, owner {owners[outside][0]} has images of series "
            f"{series[outside][0]}, expected owners of one series"
        )
    return in_series


def _check_enough(
    needed: tuple[int, int, int],
    enough: Sequence[int],
    shares: dict[int, _Share],
    order: Sequence[int],
    clients: int,
    owners_per_client: int,
) -> None:
    """Raise ValueError if fewer owners than needed have enough images. order: all owners that may be drawn."""
    if len(enough) >= sum(needed):
        return
    of_clients, auxiliary, third = needed
    lacking = sorted(set(order) - set(enough))
    example = f"; owner {lacking[0]} has {shares[lacking[0]].shortage}" if lacking else ""
    raise ValueError(
        f"clients={clients}: {len(enough)} owners have enough images, expected {sum(needed)}: {of_clients} in clients "
        f"of {owners_per_client}, {auxiliary} auxiliary and {third} third parties{example}"
    )
