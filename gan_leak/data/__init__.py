"""Data: sources of images, their scaling, and their partition among participants, by class or by owner."""

from gan_leak.data.archives import read_archive
from gan_leak.data.class_names import find_class, make_lookup
from gan_leak.data.dataset import Dataset, rotations
from gan_leak.data.images import fit, to_float, to_uint8
from gan_leak.data.owners import OwnerSplit, split_by_owner, split_iid
from gan_leak.data.partition import (
    check_adversary_ignorance,
    gather,
    parse_participant_classes,
    partition,
    split_off_judge_pool,
)
from gan_leak.data.sources import load, load_class_names
from gan_leak.data.spectrograms import Spectrogram, log_mel_spectrogram, wav_bytes, waveform_of

__all__ = [
    "Dataset",
    "OwnerSplit",
    "Spectrogram",
    "check_adversary_ignorance",
    "find_class",
    "fit",
    "gather",
    "load",
    "load_class_names",
    "log_mel_spectrogram",
    "make_lookup",
    "parse_participant_classes",
    "partition",
    "read_archive",
    "rotations",
    "split_by_owner",
    "split_iid",
    "split_off_judge_pool",
    "to_float",
    "to_uint8",
    "wav_bytes",
    "waveform_of",
]
