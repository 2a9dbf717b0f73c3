"""Secure aggregation in Python's integers: what masked words must add up to, one coordinate after the other."""

from fractions import Fraction

MODULUS = 2**32


def round_half_even(number):
    """The nearest integer of a fraction; Python rounds halves to even, as XLA does."""
    return round(number)


def to_word(integer):
    """An integer in two's complement."""
    return integer % MODULUS


def from_word(word):
    """The integer in [-2^31, 2^31) of a word."""
    word = int(word) % MODULUS
    return word - MODULUS if word >= MODULUS // 2 else word


def exact_average(values, weights, joined, largest):
    """The weighted average of clipped values [P][D] as fractions, over those who joined."""
    total = sum(int(weight) for weight, here in zip(weights, joined, strict=True) if here)
    averages = []
    for coordinate in range(len(values[0])):
        summed = Fraction(0)
        for row, weight, here in zip(values, weights, joined, strict=True):
            if here:
                clipped = max(min(Fraction(float(row[coordinate])), largest), -largest)
                summed += int(weight) * clipped
        averages.append(summed / total if total else Fraction(0))
    return averages


def integer_sum(words, joined):
    """The sum of words [P][D] of those who joined, modulo 2^32."""
    return [
        sum(int(row[coordinate]) for row, here in zip(words, joined, strict=True) if here) % MODULUS
        for coordinate in range(len(words[0]))
    ]
