"""Data: sources of images, their scaling, and their partition among participants."""

from gan_leak.data.archives import read_archive
from gan_leak.data.class_names import find_class, make_lookup
from gan_leak.data.images import fit, to_float, to_uint8
from gan_leak.data.partition import (
    check_adversary_ignorance,
    gather,
    parse_participant_classes,
    partition,
    split_off_judge_pool,
)
from gan_leak.data.sources import Dataset, load, load_class_names

__all__ = [
    "Dataset",
    "check_adversary_ignorance",
    "find_class",
    "fit",
    "gather",
    "load",
    "load_class_names",
    "make_lookup",
    "parse_participant_classes",
    "partition",
    "read_archive",
    "split_off_judge_pool",
    "to_float",
    "to_uint8",
]
