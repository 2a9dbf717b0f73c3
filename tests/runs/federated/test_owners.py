"""What a run says of its participants: classes by name, the adversary, the target."""

import numpy as np
import pytest

from gan_leak.runs.federated.owners import describe_owners, describe_run, name_classes
from gan_leak.runs.federated.setup import prepare_data
from reference.quick import small_run, write_stripes

NAMES = ("cat", "dog", "ant", "bee", "fly")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((), "no class"),
        ((1,), "dog"),
        ((0, 1), "cat, dog"),
        ((0, 1, 2), "cat to ant"),
        ((4, 0, 2, 3), "cat, ant to fly"),
        (range(5), "cat to fly"),
    ],
)
def test_classes_are_named_in_order_and_in_runs(numbers, text):
    assert name_classes(numbers, NAMES) == text


def test_many_classes_are_cut():
    text = name_classes(range(0, 60, 2), tuple(map(str, range(60))))
    assert text == f"{', '.join(str(number) for number in range(0, 24, 2))}, ... (18 more)"


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def test_every_participant_has_a_line_and_the_adversary_and_its_target_are_named(stripes):
    config = small_run(stripes, participant_classes="0,1;2,3;1;", adversary=1, target_class=0, batch_size=8)
    data = prepare_data(config)._replace(class_names=("cat", "dog", "ant", "bee"))
    sizes = np.asarray(data.federation.sizes).tolist()
    assert describe_run(config, data) == [
        f"participant 0: cat, dog ({sizes[0]} images)",
        f"participant 1, the adversary: ant, bee ({sizes[1]} images)",
        f"participant 2: dog ({sizes[2]} images)",
        "participant 3: no class (0 images)",
        "target of the active attack: class cat (number 0), owned by participant 0",
    ]


def test_classes_are_those_of_the_images_and_not_of_the_flag(stripes):
    """With 'iid' the flag only counts; the adversary has no image of its target."""
    config = small_run(stripes, participant_classes="0;1", partition="iid", adversary=1, target_class=2)
    lines = describe_run(config, prepare_data(config))
    assert lines[0].startswith("participant 0: 0 to 3 (")
    assert lines[1].startswith("participant 1, the adversary: 0, 1, 3 (")
    assert lines[2] == "target of the active attack: class 2 (number 2), owned by participant 0"


def test_a_target_that_nobody_owns_is_told(stripes):
    config = small_run(stripes, participant_classes="1;2,3", target_class=0)
    assert describe_run(config, prepare_data(config))[-1].endswith("class 0 (number 0), owned by no participant")


def test_without_an_attack_there_is_no_adversary(stripes):
    config = small_run(stripes, attack="none")
    assert not any("adversary" in line or "target" in line for line in describe_run(config, prepare_data(config)))


@pytest.mark.parametrize(("participants", "adversary", "lines"), [(12, 3, 12), (13, 3, 12), (40, 39, 13), (40, 2, 12)])
def test_at_most_a_dozen_participants_are_named(stripes, participants, adversary, lines):
    data = prepare_data(small_run(stripes))
    data = data._replace(
        held_classes=((1,),) * participants,
        federation=data.federation._replace(sizes=np.arange(participants)),
    )
    told = describe_owners(data, adversary)
    assert len(told) == lines
    named = [line for line in told if line.startswith("participant ")]
    assert [line for line in named if "the adversary" in line] == [
        f"participant {adversary}, the adversary: 1 ({adversary} images)"
    ]
    assert len(named) <= 12
    if participants > 12:
        assert told[-1] == f"... and {participants - len(named)} more participants"


def test_notes_on_the_data_come_first(stripes):
    config = small_run(stripes)
    data = prepare_data(config)._replace(notes=("skipped 3 entries",))
    assert describe_run(config, data)[0] == "skipped 3 entries"
