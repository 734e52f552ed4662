import unicodedata

import pytest
from torch import nn

from convattn.classification.labels import in_model_order
from convattn.data.class_names import class_names
from convattn.data.dataset import DataError
from convattn.data.names import NumberedClasses


class Model(nn.Module):
    def __init__(self, num_classes, label_names=None):
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg = {"label_names": label_names}


class Data:
    def __init__(self, classes, labels):
        self.classes, self.labels = classes, labels
        self.paths = [f"{index}.png" for index in range(len(labels))]

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return f"image {index}"


def test_names_are_the_models_own_or_imagenets_or_unknown():
    assert class_names(Model(2, ("cat", "dog"))) == ["cat", "dog"]
    imagenet = class_names(Model(1000))
    assert (len(imagenet), imagenet[0], imagenet[281]) == (1000, "tench", "tabby")
    assert class_names(Model(7)) is None


def test_labels_are_matched_by_name():
    data = in_model_order(Data(["cat", "fox"], [0, 1, 1]), Model(3, ("ant", "fox", "cat")))
    assert data.labels == [2, 1, 1]
    assert data.classes == ["ant", "fox", "cat"]
    assert (len(data), data.paths[2], data.read(2)) == (3, "2.png", "image 2")


def test_imagenet_folders_are_matched_by_synset():
    data = in_model_order(Data(["n02123045", "n01440764"], [0, 1]), Model(1000))
    assert data.labels == [281, 0]


def test_numbers_without_names_are_the_models_outputs():
    data = in_model_order(Data(NumberedClasses("012"), [2, 0]), Model(4, ("ant", "fox", "cat", "dog")))
    assert (data.labels, data.classes) == ([2, 0], ["ant", "fox", "cat", "dog"])
    with pytest.raises(DataError, match=r"label 4 must be between 0 and 3, for 4 classes"):
        in_model_order(Data(NumberedClasses("01234"), [4]), Model(4, ("ant", "fox", "cat", "dog")))


@pytest.mark.parametrize(
    ("names", "labels", "outputs"),
    [
        (("0", "1", "10", "2"), "2 10", [3, 2]),  # called by numbers
        (("001", "002"), "1 2", [0, 1]),
        (("2019", "2020"), "2020", [1]),
        (("a", "b", "c"), "2", [2]),
    ],
)
def test_numbers_are_names_where_the_models_classes_are_called_by_numbers(names, labels, outputs):
    classes = NumberedClasses(labels.split())
    assert in_model_order(Data(classes, list(range(len(classes)))), Model(len(names), names)).labels == outputs


def test_a_number_that_could_be_two_classes_is_refused():
    with pytest.raises(DataError, match=r"label 2 could be the class '2' or the one with that number, 'b'"):
        in_model_order(Data(NumberedClasses("2"), [0]), Model(3, ("2", "a", "b")))


def test_numbers_are_the_outputs_of_a_model_without_names():
    data = in_model_order(Data(NumberedClasses("35"), [1, 0]), Model(7))
    assert (data.labels, len(data.classes)) == ([5, 3], 7)
    with pytest.raises(DataError, match=r"the data has a label 7 and the model outputs 0 to 6"):
        in_model_order(Data(NumberedClasses("37"), [0]), Model(7))


def test_two_classes_of_one_name_are_not_taken_for_each_other():
    model = Model(3, ("crane", "dog", "crane"))
    assert in_model_order(Data(["crane", "dog", "crane"], [0, 1, 2]), model).labels == [0, 1, 2]
    assert in_model_order(Data(["dog"], [0]), model).labels == [1]
    with pytest.raises(DataError, match=r"'crane' is the name of two classes, 0 and 2"):
        in_model_order(Data(["crane"], [0]), model)


def test_names_are_compared_in_one_normal_form():
    composed, parted = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    data = in_model_order(Data([parted, "tea"], [0, 1]), Model(2, ("tea", composed)))
    assert (data.labels, data.classes) == ([1, 0], ["tea", composed])


def test_an_unknown_class_is_named():
    with pytest.raises(DataError, match=r"class 'wolf' of the data is unknown to the model, which knows cat, fox$"):
        in_model_order(Data(["fox", "wolf"], [0, 1]), Model(2, ("cat", "fox")))


def test_without_names_the_number_of_classes_must_agree():
    data = Data(["a", "b"], [0, 1])
    assert in_model_order(data, Model(2)) is data
    with pytest.raises(DataError, match=r"the data has 2 classes and the model 5 without names"):
        in_model_order(data, Model(5))
