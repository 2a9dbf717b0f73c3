"""The settings of the data and their partition."""

from __future__ import annotations

import dataclasses

from gan_leak.data.partition import SCHEMES
from gan_leak.models import IMAGE_SIZES
from gan_leak.settings import above, at_least, option


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set and its division among participants and the judge."""

    dataset: str = option(
        "mnist",
        "Data set: 'mnist', 'orl_faces', 'tfds:<name>[/<config>]', 'npz:<path>' or 'folder:<path>'.",
        kind="host",
    )
    image_size: int = option(
        32,
        "Side of the square images in pixels, 32 or 64 (Hitaj et al. 2017, section 8.1).",
        choices=IMAGE_SIZES,
    )
    partition: str = option(
        "by_class",
        "Partition among participants: 'by_class' (Hitaj et al. 2017, section 9.2), 'iid' or 'dirichlet', where the "
        "adversary has no image of the target class; or 'centralised', in which the only participant is the adversary "
        "and owns all images (section 9.1).",
        choices=SCHEMES,
        kind="host",
    )
    participant_classes: str = option(
        "0-4;5-9",
        "Classes of each participant, participants separated by ';', classes by ','. A class is given by its number "
        "from 0 or its name, 'a-b' is a range of numbers; write 'index:3' or 'name:3' if a number is also a name, and "
        "the number for a name with ',' or ';'. An empty entry is a participant without data (Hitaj et al. 2017, "
        "section 9.2.1); 'each a-b' makes a participant for each class, '50 of a-b' makes 50 participants. "
        "With partition 'iid' or 'dirichlet' only the number of participants matters.",
        kind="host",
    )
    dirichlet_concentration: float = option(
        0.5,
        "Concentration of the Dirichlet partition; smaller is less balanced.",
        bounds=above(0),
        kind="host",
    )
    samples_per_participant: int = option(
        1000,
        "Most training images of one participant; 0 = all (open; the paper uses all of MNIST).",
        bounds=at_least(0),
        kind="host",
    )
    judge_samples: int = option(
        30000,
        "Training images reserved for the judge, owned by no participant; at most half of the training set is used "
        "(ours).",
        bounds=at_least(0),
        kind="host",
    )
