"""From the settings of data divided by owner to a federation."""

import dataclasses

import numpy as np
import pytest
from absl import flags

from experiments.common.flags import config_from_flags, define_flags
from gan_leak.data.owner_settings import OwnerConfig, load_owned, split_owned
from gan_leak.settings import check_values, from_json, to_json


@pytest.fixture
def people(tmp_path):
    """Five people with six images in each of two classes, as npz."""
    owners = np.repeat(np.arange(5), 12)
    images = np.repeat(owners[:, None, None], 8 * 8, axis=1).reshape(-1, 8, 8).astype(np.uint8)
    labels = np.tile([0, 1], 30)
    test = {"test_images": images[:2], "test_labels": labels[:2]}
    np.savez(tmp_path / "people.npz", images=images, labels=labels, owners=owners, **test)
    np.savez(tmp_path / "nobody.npz", images=images, labels=labels, **test)
    return tmp_path


def config(people, **changes):
    defaults = {
        "dataset": f"npz:{people / 'people.npz'}",
        "categories": "none",
        "clients": 2,
        "owners_per_client": 1,
        "sent_per_class": 3,
        "held_out_per_class": 2,
    }
    return OwnerConfig(**defaults | changes)


def test_a_configuration_describes_a_federation(people):
    wanted = config(people, auxiliary_owners=1, third_party_owners=2)
    dataset = load_owned(wanted)
    split = split_owned(wanted, dataset, np.random.default_rng(0))
    assert [len(indices) for indices in (*split.sent, *split.held_out, *split[3:])] == [6, 6, 4, 4, 12, 24]
    control = split_owned(dataclasses.replace(wanted, partition="iid"), dataset, np.random.default_rng(0))
    assert set(np.concatenate(control.sent)) == set(np.concatenate(split.sent))
    assert control.owners.shape == (2, 0)


def test_rotations_never_put_one_photo_on_two_sides(people):
    wanted = config(people, categories="rotations", owners_per_client=2)
    dataset = load_owned(wanted)
    assert dataset.class_names[1] == "90 degrees"
    split = split_owned(wanted, dataset, np.random.default_rng(0))
    for sent, held_out in zip(split.sent, split.held_out, strict=True):
        photos = [set(dataset.train_records[indices].tolist()) for indices in (sent, held_out)]
        assert [len(side) for side in photos] == [6, 4]
        assert not photos[0] & photos[1]
        assert len(sent) == 24


def test_owners_are_named_by_number(people):
    wanted = config(
        people, client_owners="4;0", auxiliary_owner_list="1, 2", third_party_owner_list="3", auxiliary_owners=0
    )
    check_values(wanted)
    dataset = load_owned(wanted)
    split = split_owned(wanted, dataset, np.random.default_rng(0))
    assert split.owners.tolist() == [[4], [0]]
    assert set(dataset.train_owners[split.auxiliary].tolist()) == {1, 2}
    assert set(dataset.train_owners[split.third_parties].tolist()) == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client_owners": "4;0", "auxiliary_owner_list": "0"}, "auxiliary_owners: owner 0 belongs to .* client 1"),
        ({"client_owners": "4"}, r"client_owners: \[1\] owners of the clients, expected 1 for each of 2"),
        ({"clients": 6}, "clients=6: 5 owners have enough images, expected 6"),
        ({"series": 4}, "series=4: expected none, since the data have no series"),
        ({"dataset": "npz:{}/nobody.npz"}, "dataset='npz:.*nobody.npz': it has no owners, expected 'orl_faces'"),
        ({"owners": "qmnist:x"}, "owners='qmnist:x': expected none with dataset='npz:"),
    ],
)
def test_bad_input_is_one_line(people, changes, message):
    changes = {name: value.format(people) if name == "dataset" else value for name, value in changes.items()}
    wanted = config(people, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        split_owned(wanted, load_owned(wanted), np.random.default_rng(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client_owners": "4;"}, "client_owners='': expected numbers of owners such as '3,5'"),
        ({"auxiliary_owner_list": "a"}, "auxiliary_owner_list='a': expected numbers"),
        ({"third_party_owner_list": "1,,2"}, "third_party_owner_list='1,,2': expected numbers"),
        ({"series": -2}, "series=-2: expected at least -1"),
        ({"clients": 1}, "clients=1: expected at least 2"),
        ({"categories": "mirrors"}, "categories='mirrors': expected one of none, rotations"),
        ({"partition": "dirichlet"}, "partition='dirichlet': expected one of by_owner, iid"),
        ({"image_size": 30}, "image_size=30: expected one of 28, 32, 64"),
    ],
)
def test_values_are_checked_before_the_data_are_read(changes, message):
    with pytest.raises(ValueError, match=message):
        check_values(OwnerConfig(**changes))


def test_flags_and_json_come_from_the_fields():
    values = flags.FlagValues()
    define_flags(OwnerConfig, values, run_directory=False)
    values(["binary", "--dataset=mnist", "--owners=qmnist:x.gz", "--series=4", "--nobalanced", "--clients=3"])
    found = config_from_flags(OwnerConfig, values)
    assert found == OwnerConfig(dataset="mnist", owners="qmnist:x.gz", series=4, balanced=False, clients=3)
    assert from_json(OwnerConfig, to_json(found)) == found
    check_values(found)


def test_the_default_is_forty_people_in_rotations():
    dataset = load_owned(OwnerConfig())
    split = split_owned(OwnerConfig(), dataset, np.random.default_rng(0))
    assert sorted(split.owners.ravel().tolist()) == list(range(40))
    assert [len(indices) for indices in split.sent + split.held_out] == [64] * 20
    photos = [set(dataset.train_records[np.concatenate(side)].tolist()) for side in (split.sent, split.held_out)]
    assert [len(side) for side in photos] == [160, 160]
    assert not photos[0] & photos[1]
