"""Prepared TensorFlow Datasets are read without TensorFlow; preparing them asks for it."""

import io
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gan_leak.data import load, sources


def encoded(grey):
    file = io.BytesIO()
    Image.new("L", (8, 8), grey).save(file, "PNG")
    file.seek(0)
    return file


def prepare_tfds(data_dir, name="TinyShapes", labels=("round", "square"), splits=("train", "test")):
    """Prepare a small data set on disk as TFDS does, from images that are encoded already: that needs no TensorFlow."""
    features = {"image": tfds.features.Image(shape=(8, 8, 1))}
    if labels:
        features["label"] = tfds.features.ClassLabel(names=labels)

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def split_generators(self, download_manager):
        return {split: self._generate_examples(10) for split in splits}

    def generate_examples(self, count):
        for index in range(count):
            yield index, {"image": encoded(index), "label": index % 2} if labels else {"image": encoded(index)}

    with tfds.core.registered.skip_registration():
        builder_class = type(
            name,
            (tfds.core.GeneratorBasedBuilder,),
            {
                "VERSION": tfds.core.Version("1.0.0"),
                "_info": info,
                "_split_generators": split_generators,
                "_generate_examples": generate_examples,
            },
        )
    builder_class(data_dir=data_dir).download_and_prepare(file_format="array_record")


def test_prepared_tfds_data_is_read_without_tensorflow(check, tmp_path):
    prepare_tfds(tmp_path)
    dataset = load("tfds:tiny_shapes", data_dir=str(tmp_path))
    check(dataset)
    assert dataset.class_names == ("round", "square")
    assert sorted(dataset.train_images[:, 16, 16, 0].tolist()) == list(range(10))
    np.testing.assert_array_equal(dataset.train_labels, dataset.train_images[:, 16, 16, 0] % 2)
    assert len(dataset.test_labels) == 10
    assert "tensorflow" not in sys.modules


def test_tfds_data_without_a_test_split_is_split(tmp_path):
    prepare_tfds(tmp_path, splits=("train",))
    dataset = load("tfds:tiny_shapes", data_dir=str(tmp_path))
    assert np.bincount(dataset.train_labels).tolist() == [4, 4]
    assert np.bincount(dataset.test_labels).tolist() == [1, 1]


def test_unprepared_tfds_data_names_the_extra_before_any_download(refuses, tmp_path, monkeypatch):
    found = sources.importlib.util.find_spec
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else found(name))
    refuses("tfds:mnist", str(tmp_path), "pip install 'gan-leak[tfds]'", data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_unsuitable_tfds_data_is_refused(refuses, tmp_path):
    refuses("tfds:no_such_data", "dataset='tfds:no_such_data'", data_dir=str(tmp_path))
    refuses("tfds:mnist/no_such_config", "dataset='tfds:mnist/no_such_config'", data_dir=str(tmp_path))
    refuses("tfds:???", "dataset='tfds:???'", data_dir=str(tmp_path))
    prepare_tfds(tmp_path, name="Unlabelled", labels=())
    refuses("tfds:unlabelled", "expected 'image' and a class 'label'", data_dir=str(tmp_path))
    prepare_tfds(tmp_path, name="Untrained", splits=("test",))
    refuses("tfds:untrained", "expected 'train'", data_dir=str(tmp_path))


def test_truncated_tfds_data_is_refused(refuses, tmp_path):
    prepare_tfds(tmp_path)
    (record,) = tmp_path.glob("tiny_shapes/1.0.0/*train*array_record*")
    record.write_bytes(record.read_bytes()[:-200])
    refuses("tfds:tiny_shapes", "cannot read split 'train'", data_dir=str(tmp_path))


class UnpreparedBuilder:
    """A builder that stands for one on a machine with TensorFlow: unprepared at first."""

    data_dir = "somewhere"

    def __init__(self, failure=None):
        self.failure, self.prepared_as = failure, None
        label = tfds.features.ClassLabel(names=("a", "b"))
        self.info = type("Info", (), {"features": {"image": None, "label": label}, "splits": {"train": None}})()

    def is_prepared(self):
        return self.prepared_as is not None

    def download_and_prepare(self, *, file_format):
        if self.failure:
            raise self.failure
        self.prepared_as = file_format

    def as_data_source(self, split):
        return [{"image": np.full((8, 8, 1), index, np.uint8), "label": index % 2} for index in range(10)]


def test_with_tensorflow_unprepared_data_is_prepared_as_array_record(check, refuses, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: object())
    builder = UnpreparedBuilder()
    monkeypatch.setattr(sources, "_tfds_builder", lambda argument, data_dir: builder)
    check(load("tfds:anything"))
    assert builder.prepared_as == "array_record"
    builder = UnpreparedBuilder(failure=ConnectionError("no network\nat all"))
    refuses("tfds:anything", "cannot be prepared in somewhere", "no network")
