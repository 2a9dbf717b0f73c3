"""Secure aggregation: the server learns a sum of uploads and no single one (Bonawitz et al., CCS 2017, section 4).

An ideal functionality that is really computed: the words that the server sees are uploads in fixed point plus masks,
modulo 2^32, and the average is decoded from their sum. What is left out is the cryptography: key agreement, secret
shares, signatures. All masks are drawn from the key of the round, by the generator of JAX, which is not
cryptographic. So this serves to measure attacks and not to protect anybody.

The encoding. Every participant k of a sum knows its sample count n_k and, from a first secure sum of the counts, their
total n. It clips its values to the range, multiplies them by n_k / n and rounds them to a multiple of 2^-b, for b
fraction bits. The range is (2^31 - 2^16) / 2^b, so for up to 2^16 participants no sum overflows: the factors add
up to one. Sample counts stay hidden; their total is public. Each decoded value differs from the exact average of the
clipped values by at most ``quantization_bound``: half a unit of 2^-b for each participant, plus rounding in float32.

The masks. The two participants of each pair draw the same words; one adds them, the other subtracts them, so they
cancel in the sum. A second mask of its own hides the upload of a participant that the server leaves out after it was
sent (double masking). ``MaskedSum.words`` are the words that remain after the server has
removed all masks that the protocol reveals to it: pairwise masks for those who joined the sum, own masks for others.
Given the average and the total, they are uniform and independent of the uploads, except that the words of those who
joined add up to the encoded sum.

Choices that are ours:

- Every participant sends all coordinates. Coordinates that an upload leaves out are zeros in the sum, and each counts
  as uploaded, because a server that saw which ones were left out would see part of the upload.
- A value that is not finite has no code; in the protocol its owner would not send it. Here its coordinate of the
  average is NaN, so that a diverged update is detected.
- If fewer than ``threshold`` participants join, nothing is revealed and the shared parameters stay as they are.
- With ``compare_models`` the participants compare a hash of the parameters that they were sent, and send nothing if
  two differ. This stops a server that sends inconsistent models (Pasquini et al., CCS 2022). Hashes are assumed to
  have no collisions, and to reach all participants unchanged.

>>> from gan_leak.types import FlatServer, RoundHyperParameters, Upload
>>> server, uploads = FlatServer(jnp.zeros(2), jnp.zeros(2)), jnp.array([[1.0, 2.0], [3.0, 4.0]])
>>> server, _, visible, _ = secure_average().apply(
...     jax.random.key(0),
...     server,
...     Upload(uploads, uploads > 0),
...     jnp.array([1, 1]),
...     (),
...     hyperparameters=RoundHyperParameters(0.1),
... )
>>> visible.average
Array([2., 3.], dtype=float32)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_leak.defenses.contract import AGGREGATION, Defense, HyperParameter, Secrecy
from gan_leak.settings import Bounds
from gan_leak.types import Aggregator, Array, FlatServer, MaskedSum, PyTree, RoundHyperParameters, Upload

MOST_PARTICIPANTS = 2**16
# The largest encoded value. Half a word of rounding for each participant, and rounding in float32, fit above it.
_LARGEST_WORD = 2**31 - 2**16


class SecureSumInfo(NamedTuple):
    """The log of a secure sum; the server does not see it.

    joined: int32 [], the number of uploads in the sum. clipped: int32 [], the number of values outside of the range.
    consistent: bool [], whether all participants were sent the same parameters.
    """

    joined: Array
    clipped: Array
    consistent: Array


class _Members(NamedTuple):
    """Bool [P]: who sent words, and whose words are in a sum that the server may decode."""

    present: Array
    joined: Array


def largest_value(fraction_bits: Array | int) -> Array:
    """The largest magnitude of a value in fixed point, float32 []; larger ones are clipped to it."""
    return jnp.ldexp(jnp.float32(_LARGEST_WORD), -_whole(fraction_bits))


def quantization_bound(participants: int, fraction_bits: int, largest_average: float) -> float:
    """The most by which a decoded coordinate differs from the exact weighted average.

    ``participants`` values are rounded to half a unit of 2^-fraction_bits each. Each value is weighted, and the sum is
    decoded, in float32: four roundings of at most 2^-24 of ``largest_average``, the average of the magnitudes.
    """
    return participants * 2.0 ** -(fraction_bits + 1) + 4 * 2.0**-24 * largest_average


def encode(values: Array, fraction_bits: Array | int) -> Array:
    """Values float32 as fixed point in two's complement, uint32; they must be finite and within the range."""
    words = jnp.round(jnp.ldexp(values, _whole(fraction_bits))).astype(jnp.int32)
    return jax.lax.bitcast_convert_type(words, jnp.uint32)


def decode(words: Array, fraction_bits: Array | int) -> Array:
    """The inverse of ``encode``, rounded to float32."""
    signed = jax.lax.bitcast_convert_type(words, jnp.int32)
    return jnp.ldexp(signed.astype(jnp.float32), -_whole(fraction_bits))


def pairwise_masks(key: Array, joined: Array, length: int) -> Array:
    """The masks of all participants, uint32 [P, length]: those of bool [P] ``joined`` add up to zero, others are zero.

    The words of a pair depend on ``key`` and on the places of the two only. The cost grows with the square of P.
    """
    participants = len(joined)

    def add_pair(masks: Array, pair: tuple[Array, ...]) -> tuple[Array, None]:
        first, second = pair
        key_pair = jax.random.fold_in(jax.random.fold_in(key, first), second)
        words = jnp.where(joined[first] & joined[second], jax.random.bits(key_pair, (length,), jnp.uint32), 0)
        return masks.at[first].add(words).at[second].subtract(words), None

    pairs = tuple(jnp.asarray(places, jnp.int32) for places in np.triu_indices(participants, 1))
    return jax.lax.scan(add_pair, jnp.zeros((participants, length), jnp.uint32), pairs)[0]


def _own_masks(key: Array, hidden: Array, length: int) -> Array:
    """One mask uint32 [length] for each participant of bool [P] ``hidden``; zeros for the others."""

    def draw(entry: tuple[Array, Array]) -> Array:
        place, is_hidden = entry
        return jnp.where(is_hidden, jax.random.bits(jax.random.fold_in(key, place), (length,), jnp.uint32), 0)

    return jax.lax.map(draw, (jnp.arange(len(hidden)), hidden))


def mask_words(key: Array, words: Array, members: _Members) -> Array:
    """Words uint32 [P, M] as the server sees them: of those who joined with pairwise masks, of others with their own.

    Words of participants that are not present are zeros. Modulo 2^32 the sum over ``joined`` is that of the words.
    """
    key_pairs, key_own = jax.random.split(key)
    length = words.shape[1]
    shared = pairwise_masks(key_pairs, members.joined, length)
    own = _own_masks(key_own, members.present & ~members.joined, length)
    return jnp.where(members.present[:, None], words + shared + own, 0)


def sum_words(words: Array, joined: Array) -> Array:
    """The sum modulo 2^32 of the words [P, M] of those who joined, bool [P] -> uint32 [M]."""
    return jnp.sum(jnp.where(joined[:, None], words, 0), axis=0, dtype=jnp.uint32)


def _all_sent_the_same(sent: Array | None, present: Array) -> Array:
    """Bool []: whether the parameters float32 [P, D] sent to those present are equal, bit by bit; None means yes."""
    if sent is None:
        return jnp.ones((), bool)
    bits = jax.lax.bitcast_convert_type(sent, jnp.uint32)
    same = jnp.all(bits == bits[jnp.argmax(present)][None], axis=1)
    return jnp.all(same | ~present)


def secure_average(
    fraction_bits: Array | int = 26, threshold: Array | int = 2, compare_models: Array | int = 0
) -> Aggregator:
    """Average the uploads, weighted by sample counts, through a secure sum. The server sees a ``MaskedSum``.

    fraction_bits: bits after the binary point, 0 to 30. threshold: the least number of uploads in a sum that is
    revealed, at least 1; with 1 a single upload is revealed. compare_models: 1 if participants compare the parameters
    that they were sent, 0 if they trust the server. All may be traced.

    A participant without samples is absent, as is padding: it sends no words. An upload that is not merged counts as
    one whose owner dropped out after it was sent. All sample counts together must be below 2^31.

    The aggregator raises ValueError for more than 2^16 participants.
    """

    def apply(
        key: Array,
        server: FlatServer,
        uploads: Upload,
        weights: Array,
        state: PyTree,
        *,
        hyperparameters: RoundHyperParameters,
        merged: Array | None = None,
        sent: Array | None = None,
        **extra: Any,
    ) -> tuple[FlatServer, PyTree, MaskedSum, SecureSumInfo]:
        if len(weights) > MOST_PARTICIPANTS:
            raise ValueError(f"participants={len(weights)}: expected at most {MOST_PARTICIPANTS} in a secure sum")
        consistent = _all_sent_the_same(sent, weights > 0)
        present = (weights > 0) & (consistent | (jnp.asarray(compare_models) == 0))
        survived = present if merged is None else present & merged
        members = _Members(present, survived & (jnp.sum(survived) >= threshold))
        visible, clipped = _exchange(key, uploads.values, weights, members, fraction_bits)
        joined = jnp.sum(members.joined).astype(jnp.int32)
        server = FlatServer(
            server.params + visible.average, hyperparameters.update_count_decay * server.update_counts + joined
        )
        return server, state, visible, SecureSumInfo(joined, clipped, consistent)

    return Aggregator(lambda params: (), apply)


def _exchange(
    key: Array, values: Array, weights: Array, members: _Members, fraction_bits: Array | int
) -> tuple[MaskedSum, Array]:
    """The two secure sums, of sample counts and of weighted values [P, D], and the number of clipped values."""
    key_weights, key_values = jax.random.split(key)
    counts = jnp.where(members.present, weights, 0).astype(jnp.uint32)[:, None]
    weight_words = mask_words(key_weights, counts, members)
    [total] = sum_words(weight_words, members.joined)
    # Those who joined have a factor of at most one; the words of the others are noise anyway.
    factors = jnp.minimum(weights.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32), 1.0)
    largest = largest_value(fraction_bits)
    usable = members.present[:, None] & jnp.isfinite(values)
    clipped = jnp.sum(usable & (jnp.abs(values) > largest)).astype(jnp.int32)
    weighted = factors[:, None] * jnp.where(usable, jnp.clip(values, -largest, largest), 0.0)
    words = mask_words(key_values, encode(weighted, fraction_bits), members)
    average = decode(sum_words(words, members.joined), fraction_bits)
    diverged = jnp.any(members.joined[:, None] & ~jnp.isfinite(values), axis=0)
    average = jnp.where(diverged, jnp.nan, average)
    return MaskedSum(words, weight_words[:, 0], members.present, average, total, jnp.any(members.joined)), clipped


def _whole(number: Array | int) -> Array:
    """A number of bits, also if it is traced as floating point."""
    return jnp.round(jnp.asarray(number)).astype(jnp.int32)


DEFENSE = Defense(
    name="secure_aggregation",
    stages=(AGGREGATION,),
    build=secure_average,
    hyperparameters=(
        HyperParameter(
            "fixed_point_bits",
            26,
            "Defense 'secure_aggregation': bits after the binary point of an upload, 0 to 30 (ours; Bonawitz et al. "
            "2017 sum integers).",
            Bounds(0, 30, highest_included=True, wording="a whole number from 0 to 30"),
            neutral=None,
        ),
        HyperParameter(
            "secure_sum_threshold",
            2,
            "Defense 'secure_aggregation': least number of uploads in a sum that is revealed (t of Bonawitz et al. "
            "2017).",
            Bounds(
                1, MOST_PARTICIPANTS, highest_included=True, wording=f"a whole number from 1 to {MOST_PARTICIPANTS}"
            ),
            neutral=None,
        ),
        HyperParameter(
            "compare_models",
            0,
            "Defense 'secure_aggregation': 1 if participants compare the models that they were sent, 0 if they trust "
            "the server (Pasquini et al. 2022).",
            Bounds(0, 1, highest_included=True, wording="0 or 1"),
            neutral=None,
        ),
    ),
    aggregation="average",
    secrecy=Secrecy(
        mechanism="secure aggregation",
        hides="each upload and each sample count, among all that give the same sums",
        against="a server that follows the protocol and may leave out uploads, and observers of the network; not "
        "participants that collude with it",
        reveals="the weighted average, the total of the sample counts, and who takes part; no epsilon bounds what an "
        "average tells about one participant",
        broken_by="a server that sends inconsistent models, so that the other uploads are known (Pasquini et al. "
        "2022), unless participants compare a hash of the models (compare_models=1)",
    ),
)
