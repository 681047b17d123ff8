import gzip
import logging
import os
import pickle
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vissl_like.data import cache
from vissl_like.data.datasets.base import DEFAULT_MEAN, DEFAULT_STD, ImageDataset, UnreadableImage, evenly_spread
from vissl_like.records import Skipped
from vissl_like.registry import DATASETS
from vissl_like.utils.errors import UserError


def build(name, **options):
    return DATASETS.get(name)(**{key: str(value) if key == "path" else value for key, value in options.items()})


def pixels(dataset):
    return [np.asarray(dataset.read(index)).tolist() for index in range(len(dataset))]


def idx_bytes(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def mnist_like(tmp_path):
    """Folder with IDX files: train plain, test compressed; returns it with the images and labels of both."""
    random = np.random.default_rng(0)
    folder = tmp_path / "mnist"
    folder.mkdir()
    parts = {}
    for name, prefix, count, ending, opener in (
        ("train", "train", 7, "", open),
        ("test", "t10k", 5, ".gz", gzip.open),
    ):
        images = random.integers(0, 256, (count, 6, 4), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        for kind, values, dims in (("images", images, 3), ("labels", labels, 1)):
            with opener(folder / f"{prefix}-{kind}-idx{dims}-ubyte{ending}", "wb") as file:
                file.write(idx_bytes(values))
        parts[name] = (images, labels)
    return folder, parts


class TestBase:
    def test_defaults_follow_the_channels(self, flat_folder):
        colour, grey = build("folder", path=flat_folder), build("folder", path=flat_folder, channels=1)
        assert (colour.mean, colour.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert (grey.mean, grey.std) == (DEFAULT_MEAN[1], DEFAULT_STD[1]) == ((0.5,), (0.25,))
        assert colour.read(0).mode == "RGB" and grey.read(0).mode == "L"
        assert build("folder", path=flat_folder, channels=1, mean=[0.3], std=[0.2]).mean == (0.3,)

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"mean": [0.5]}, "1 values for 3 channel"),
            ({"mean": [123.7, 116.3, 103.5]}, "Divide values"),
            ({"std": [0.0, 0.1, 0.1]}, "above 0"),
            ({"channels": 2}, "3 .colour. or 1"),
            ({"limit": 0}, "at least 1"),
            ({"cache": "disk"}, "'none' or 'ram'"),
        ],
    )
    def test_options_that_do_not_fit(self, flat_folder, options, words):
        with pytest.raises(UserError, match=words):
            build("folder", path=flat_folder, **options)

    def test_evenly_spread_takes_one_of_each_stretch(self):
        chosen = evenly_spread(1000, 100)
        assert np.array_equal(chosen // 10, np.arange(100))
        assert len(set((chosen % 10).tolist())) == 10  # a stride of ten would meet one class of ten only
        assert evenly_spread(3, 5).tolist() == [0, 1, 2] and evenly_spread(5, 1).shape == (1,)
        assert np.array_equal(chosen, evenly_spread(1000, 100))

    def test_limit_is_a_stable_part(self, flat_folder):
        whole, part = build("folder", path=flat_folder), build("folder", path=flat_folder, limit=4)
        paths = [part.path(index) for index in range(4)]
        assert len(part) == 4 and paths == sorted(paths)
        assert set(paths) < {whole.path(index) for index in range(10)}
        assert [pixels(part)[i] for i in range(4)] == [
            np.asarray(Image.open(path).convert("RGB")).tolist() for path in paths
        ]
        assert len(build("folder", path=flat_folder, limit=99)) == 10
        for wrong in (4, -1):
            with pytest.raises(IndexError):
                part.read(wrong)

    def test_description(self, tmp_path, picture):
        for number, (label, ending) in enumerate([("cat", "png"), ("cat", "jpg"), ("dog", "png")]):
            (tmp_path / label).mkdir(exist_ok=True)
            picture(number, (10 * (number + 1), 8)).save(tmp_path / label / f"{number}.{ending}")
        (tmp_path / "dog" / "empty.jpg").write_bytes(b"")
        (tmp_path / "dog" / "broken.jpg").write_bytes(b"nothing")
        facts = build("folder", path=tmp_path).describe()
        assert facts["images"] == 4 and facts["labels"] == "2 classes"
        assert facts["class_counts"] == {"cat": 2, "dog": 2}
        assert facts["formats"] == {"PNG": 2, "JPEG": 1}
        assert facts["width"] == [10, 15, 20, 25, 30] and facts["height"] == [8] * 5
        assert facts["headers_sampled"] == 4 and facts["unreadable_headers"] == 1
        assert len(facts["first_paths"]) == 3 and facts["first_paths"][0].endswith("cat/0.png")
        assert facts["skipped"] == 1 and facts["skipped_files"] == ["dog/empty.jpg: empty file"]

    def test_a_dataset_needs_three_methods_only(self, picture):
        class Few(ImageDataset):
            def __len__(self):
                return 2

            def read(self, index):
                return picture(index)

            def path(self, index):
                return f"few/{index}"

        facts = Few().describe()
        assert facts["formats"] == {"image": 2} and facts["labels"] == "none" and facts["width"][0] == 12

    def test_unreadable_image_survives_pickling(self):
        error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "broken")))
        assert (error.path, error.reason, str(error)) == ("a.png", "broken", "a.png: broken")


class TestFolder:
    def test_flat_folder_without_labels(self, flat_folder, picture):
        dataset = build("folder", path=flat_folder)
        assert len(dataset) == 10 and dataset.labels is None and dataset.classes is None
        assert pixels(dataset)[3] == np.asarray(picture(3)).tolist()
        assert dataset.path(3) == str(flat_folder / "03.png")

    @pytest.mark.parametrize(
        "names, labels",
        [
            (["a/1.png", "a/2.png", "b/3.png"], [0, 0, 1]),
            (["a/1.png", "a/2.png"], None),  # one folder tells nothing apart
            (["a/1.png", "b/2.png", "3.png"], None),
            (["a/1.png", "b/x/2.png"], None),
        ],
    )
    def test_labels_where_they_are_plain(self, tmp_path, picture, names, labels):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            picture().save(tmp_path / name)
        found = build("folder", path=tmp_path)
        assert (found.labels is None) if labels is None else (found.labels.tolist() == labels)
        assert build("folder", path=tmp_path, labels="none").labels is None
        if "3.png" in names:
            with pytest.raises(UserError, match="1 of 3 images lie directly"):
                build("folder", path=tmp_path, labels="folders")
        else:
            assert build("folder", path=tmp_path, labels="folders").classes == sorted({name[0] for name in names})

    def test_limit_takes_its_labels_along(self, tmp_path, picture):
        for label in "abcd":
            (tmp_path / label).mkdir()
            for number in range(5):
                picture().save(tmp_path / label / f"{number}.png")
        dataset = build("folder", path=tmp_path, limit=8)
        assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert [dataset.path(index).split("/")[-2] for index in range(8)] == list("aabbccdd")

    def test_empty_files_are_skipped_and_listed(self, flat_folder):
        (flat_folder / "00.png").write_bytes(b"")
        dataset = build("folder", path=flat_folder)
        assert len(dataset) == 9 and dataset.skipped == [Skipped("00.png", "empty file")]

    def test_missing_path_names_the_nearest(self, flat_folder):
        with pytest.raises(UserError, match=r"there is no 'photo' in .*Did you mean 'photos'"):
            build("folder", path=flat_folder.parent / "photo" / "train")

    def test_empty_folder_says_what_was_tried(self, tmp_path):
        with pytest.raises(UserError, match=r"no images in .*Endings tried: \.jpg") as caught:
            build("auto", path=tmp_path)
        assert str(tmp_path) in str(caught.value)

    def test_folder_of_other_files(self, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        (tmp_path / "raw.cr2").write_text("hello")
        (tmp_path / "zero.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"1 \.txt.*Skipped: 1, such as zero\.png") as caught:
            build("folder", path=tmp_path)
        assert "1 .cr2" in str(caught.value)

    def test_folder_of_broken_images(self, tmp_path):
        for number in range(3):
            (tmp_path / f"{number}.jpg").write_bytes(b"no image")
        with pytest.raises(UserError, match="none of the 3 files tried"):
            build("folder", path=tmp_path)

    def test_file_where_a_folder_is_wanted(self, flat_folder):
        with pytest.raises(UserError, match="is a file"):
            build("folder", path=flat_folder / "00.png")

    def test_bombs_are_unreadable(self, tmp_path, picture):
        picture(0, (100, 100)).save(tmp_path / "big.png")
        picture(0, (10, 10)).save(tmp_path / "small.png")
        dataset = build("folder", path=tmp_path, max_pixels=5000)
        with pytest.raises(UnreadableImage, match="limit max_pixels = 5000"):
            dataset.read(0)
        assert dataset.read(1).size == (10, 10)


class TestFileList:
    def write(self, folder, name, text):
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    def test_text_with_and_without_labels(self, flat_folder):
        plain = build("file_list", path=self.write(flat_folder, "l.txt", "03.png\n\n01.png\r\n"))
        assert [plain.path(i)[-6:] for i in range(len(plain))] == ["03.png", "01.png"] and plain.labels is None
        named = build("file_list", path=self.write(flat_folder, "n.txt", "03.png\tzebra\n01.png\tant\n02.png\tzebra"))
        assert named.labels.tolist() == [1, 0, 1] and named.classes == ["ant", "zebra"]
        assert build("file_list", path=flat_folder / "n.txt", labels="none").labels is None

    def test_csv_with_quotes_and_other_columns(self, flat_folder, picture):
        picture().save(flat_folder / "a, b.png")
        path = self.write(flat_folder, "l.csv", '\ufeffnumber,path,label\n1,"a, b.png",7\n2,00.png,2\n')
        dataset = build("file_list", path=path)
        assert dataset.path(0).endswith("a, b.png") and dataset.labels.tolist() == [7, 2]
        assert dataset.classes == [str(number) for number in range(8)]  # numbers mean the same in every list

    def test_array_of_text_and_root(self, flat_folder, tmp_path):
        for kind in ("U", "S"):
            np.save(tmp_path / "l.npy", np.array(["01.png", str(flat_folder / "02.png")]).astype(kind))
            dataset = build("file_list", path=tmp_path / "l.npy", root=str(flat_folder))
            assert [dataset.path(index) for index in (0, 1)] == [str(flat_folder / f"0{n}.png") for n in (1, 2)]

    def test_missing_files_are_reported_together(self, flat_folder):
        text = "".join(f"gone{number}.png\n" for number in range(12)) + "00.png\n"
        with pytest.raises(UserError, match=r"12 of the 13 files listed") as caught:
            build("file_list", path=self.write(flat_folder, "l.txt", text))
        assert all(f"gone{number}.png" in str(caught.value) for number in range(10)) and "root" in str(caught.value)

    def test_an_edited_list_is_read_again(self, flat_folder, settle):
        path = self.write(flat_folder, "l.txt", "01.png\n")
        settle(flat_folder)
        assert len(build("file_list", path=path)) == 1
        self.write(flat_folder, "l.txt", "01.png\n02.png\n")
        assert len(build("file_list", path=path)) == 2

    def test_kept_list_keeps_its_labels(self, flat_folder, own_cache):
        path = self.write(flat_folder, "l.txt", "01.png\tb\n02.png\ta\n")
        os.utime(path, (1e9, 1e9))
        for _ in range(2):
            dataset = build("file_list", path=path)
            assert dataset.labels.tolist() == [1, 0] and dataset.classes == ["a", "b"]
        assert len(list((own_cache / "indexes").iterdir())) == 1

    @pytest.mark.parametrize(
        "name, text, words",
        [
            ("l.json", "[]", r"a list is a file ending in \.csv, \.npy, \.txt"),
            ("l.txt", "\n\n", "names no images"),
            ("l.csv", "file,label\n00.png,1\n", "no column 'path'"),
            ("l.csv", "Paths,label\n00.png,1\n", "Did you mean 'Paths'"),
            ("l.csv", "path,label\n00.png\n", "line 2 .* too few columns"),
            ("l.txt", "00.png\t1\n01.png\n", "1 of the 2 entries .* have a label"),
        ],
    )
    def test_lists_that_are_none(self, flat_folder, name, text, words):
        with pytest.raises(UserError, match=words):
            build("file_list", path=self.write(flat_folder, name, text))


class TestArray:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("shape", [(5, 8, 6), (5, 8, 6, 1), (5, 8, 6, 3), (5, 1, 8, 6), (5, 3, 8, 6)])
    def test_shapes(self, tmp_path, shape, channels):
        values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.save(tmp_path / "a.npy", values)
        dataset = build("array", path=tmp_path / "a.npy", channels=channels)
        chw = values[2][None] if len(shape) == 3 else values[2] if shape[1] in (1, 3) else values[2].transpose(2, 0, 1)
        image = np.asarray(dataset.read(2))
        assert dataset.read(2).size == (6, 8) == dataset.header(2)[1] and image.ndim == (2 if channels == 1 else 3)
        if len(chw) == 3 and channels == 3:
            assert np.array_equal(image, chw.transpose(1, 2, 0))
        elif len(chw) == 1:
            assert np.array_equal(image if channels == 1 else image[..., 2], chw[0])

    def test_npz_with_labels_inside(self, tmp_path):
        images = np.zeros((4, 8, 8), np.uint8)
        np.savez(tmp_path / "a.npz", x=images, y=np.arange(4))
        dataset = build("array", path=tmp_path / "a.npz", labels_path="y")
        assert dataset.labels.tolist() == [0, 1, 2, 3] and dataset.path(1).endswith("a.npz:x[1]")
        np.savez(tmp_path / "two.npz", x=images, z=images)
        assert len(build("array", path=tmp_path / "two.npz", key="z", limit=2)) == 2
        with pytest.raises(UserError, match="set 'key'"):
            build("array", path=tmp_path / "two.npz")
        with pytest.raises(UserError, match="no array 'w'"):
            build("array", path=tmp_path / "two.npz", key="w")
        with pytest.raises(UserError, match=r"no array of the \.npz"):
            build("array", path=tmp_path / "a.npz", labels_path="yy")

    def test_pixels_are_not_copied_to_workers(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 256, (50, 64, 64), dtype=np.uint8)
        np.save(tmp_path / "a.npy", values)
        sent = pickle.dumps(build("array", path=tmp_path / "a.npy", channels=1))
        assert len(sent) < 2000
        assert np.array_equal(np.asarray(pickle.loads(sent).read(49)), values[49])

    def test_labels_file_of_another_length(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
        np.save(tmp_path / "l.npy", np.zeros(3, int))
        with pytest.raises(UserError, match=r"holds 4 images, but the labels have the shape \[3\]"):
            build("array", path=tmp_path / "a.npy", labels_path=str(tmp_path / "l.npy"), limit=2)
        np.save(tmp_path / "l.npy", np.zeros(4))
        with pytest.raises(UserError, match="must be whole numbers"):
            build("array", path=tmp_path / "a.npy", labels_path=str(tmp_path / "l.npy"))

    @pytest.mark.parametrize(
        "values, words",
        [
            (np.zeros((4, 8, 8), np.float32), "float32 of shape"),
            (np.zeros((4, 8), np.uint8), "shape .4, 8."),
            (np.zeros((4, 8, 8, 2), np.uint8), "neither of dimension"),
            (np.zeros((4, 3, 8, 3), np.uint8), "Set 'layout'"),
        ],
    )
    def test_arrays_that_are_no_images(self, tmp_path, values, words):
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(UserError, match=words):
            build("array", path=tmp_path / "a.npy")

    def test_layout_decides(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((4, 3, 8, 3), np.uint8))
        assert build("array", path=tmp_path / "a.npy", layout="hwc").read(0).size == (8, 3)
        assert build("array", path=tmp_path / "a.npy", layout="chw").read(0).size == (3, 8)


class TestIdx:
    def test_both_splits_plain_and_compressed(self, mnist_like):
        folder, parts = mnist_like
        for split, (images, labels) in parts.items():
            dataset = build("idx", path=folder, split=split, channels=1)
            assert np.array_equal(np.array(pixels(dataset)), images) and dataset.labels.tolist() == labels.tolist()
            assert np.asarray(pickle.loads(pickle.dumps(dataset)).read(4)).tolist() == images[4].tolist()

    def test_default_split_raw_folder_and_single_file(self, mnist_like):
        folder, parts = mnist_like
        (folder.parent / "raw").mkdir()
        for file in folder.iterdir():
            file.rename(folder.parent / "raw" / file.name)
        assert len(build("auto", path=folder.parent)) == 7
        file = folder.parent / "raw" / "t10k-images-idx3-ubyte.gz"
        assert build("auto", path=file, channels=1).labels.tolist() == parts["test"][1].tolist()
        assert build("idx", path=file, labels="none").labels is None
        with pytest.raises(UserError, match="leave 'split' out"):
            build("idx", path=file, split="test")
        file.unlink()
        with pytest.raises(UserError, match="no t10k-images"):
            build("idx", path=folder.parent, split="test")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0\0\x08",
            b"PK\x03\x04 and so on",
            idx_bytes(np.zeros((3, 4, 4), np.uint8))[:-1],
            idx_bytes(np.zeros((3, 4, 4), np.uint8)) + b"x",
        ],
    )
    @pytest.mark.parametrize("packed", [False, True])
    def test_damaged_files(self, tmp_path, data, packed):
        path = tmp_path / ("x-images-idx3-ubyte" + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(data) if packed else data)
        with pytest.raises(UserError, match=r"not an IDX file .*damaged"):
            build("idx", path=path)
        path.write_bytes(b"not compressed" if packed else data)
        with pytest.raises(UserError, match=r"not an IDX file .*damaged"):
            build("idx", path=path)

    def test_labels_of_another_number(self, mnist_like):
        folder, _ = mnist_like
        (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
        with pytest.raises(UserError, match=r"holds 7 images, but the labels have the shape \[3\]"):
            build("idx", path=folder)


class TestTorchvision:
    def test_a_dataset_by_name(self):
        dataset = build("torchvision", dataset="FakeData", arguments={"size": 6, "image_size": [3, 10, 12]}, limit=4)
        assert len(dataset) == 4 and dataset.read(0).size == (12, 10) and dataset.read(0).mode == "RGB"
        assert dataset.labels is None and dataset.path(0).startswith("torchvision:FakeData[")

    def test_labels_and_classes(self, tmp_path, picture):
        for label in ("a", "b"):
            (tmp_path / label).mkdir()
            picture().save(tmp_path / label / "1.png")
        dataset = build("torchvision", dataset="ImageFolder", path=tmp_path, channels=1)
        assert dataset.labels.tolist() == [0, 1] and dataset.classes == ["a", "b"] and dataset.read(1).mode == "L"
        (tmp_path / "a" / "1.png").write_bytes(b"broken")
        with pytest.raises(UnreadableImage, match="ImageFolder"):
            dataset.read(0)

    def test_mnist_files_as_torchvision_reads_them(self, mnist_like):
        folder, _ = mnist_like
        (folder / "MNIST" / "raw").mkdir(parents=True)
        for file in folder.glob("*ubyte"):
            file.rename(folder / "MNIST" / "raw" / file.name)
        with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as images:
            (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(images.read())
        with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as labels:
            (folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(labels.read())
        theirs = build("torchvision", dataset="MNIST", path=folder, arguments={"train": False}, channels=1)
        ours = build("idx", path=folder / "MNIST", split="test", channels=1)
        assert pixels(theirs) == pixels(ours) and theirs.labels.tolist() == ours.labels.tolist()

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"dataset": "CIFAR11"}, "Did you mean 'CIFAR10'"),
            ({"dataset": "FakeData", "path": "x"}, "leave the option 'path' out"),
            ({"dataset": "FakeData", "arguments": {"sise": 3}}, "no argument 'sise'. Did you mean 'size'"),
            ({"dataset": "CIFAR10", "path": "/nonexistent"}, "Set 'download' to true"),
        ],
    )
    def test_what_torchvision_does_not_have(self, options, words):
        with pytest.raises(UserError, match=words):
            build("torchvision", **options)


class TestSynthetic:
    def test_is_a_function_of_its_seed(self):
        first, again, other = (build("synthetic", count=12, size=16, seed=seed) for seed in (1, 1, 2))
        assert pixels(first) == pixels(again) != pixels(other)
        assert first.labels.tolist() == [number % 6 for number in range(12)]
        assert first.classes == [f"plain {shape}" for shape in ("disc", "square", "triangle", "ring", "cross", "star")]
        assert build("synthetic", count=2, channels=1).read(1).mode == "L"

    def test_can_be_learnt_but_not_from_brightness(self):
        from sklearn.linear_model import LogisticRegression

        dataset = build("synthetic", count=480, size=32, classes=2, channels=1)  # discs and squares
        values = np.array(pixels(dataset), np.float32) / 255
        # Size-free shape: share of the bounding box that is light (a disc fills pi / 4, a turned square from 1/2 to 1).
        features = []
        for image in values:
            light = image > 0.45
            rows, columns = np.flatnonzero(light.any(1)), np.flatnonzero(light.any(0))
            area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            features.append([light.sum() / area, (light.sum() / area - 0.78) ** 2])
        shape, brightness = np.array(features) * [1, 100], values.mean((1, 2))[:, None]

        def accuracy(x):
            return LogisticRegression(C=100).fit(x[:240], dataset.labels[:240]).score(x[240:], dataset.labels[240:])

        assert accuracy(shape) > 0.8 and accuracy(brightness) < 0.7

    def test_bounds(self):
        for options in ({"classes": 1}, {"classes": 25}, {"size": 7}):
            with pytest.raises(UserError):
                build("synthetic", **options)
        images = pixels(build("synthetic", count=24, classes=24, size=24))
        assert len({str(image) for image in images}) == 24


class TestAuto:
    def test_every_kind_of_path(self, tmp_path, flat_folder, mnist_like):
        np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8))
        np.savez(tmp_path / "a.npz", a=np.zeros((3, 8, 8), np.uint8))
        np.save(flat_folder / "l.npy", np.array(["00.png"]))
        (flat_folder / "l.txt").write_text("00.png\n")
        (flat_folder / "l.csv").write_text("path\n00.png\n")
        for path, kind, count in (
            (flat_folder, "FolderImages", 10),
            (flat_folder / "l.txt", "ListedImages", 1),
            (flat_folder / "l.csv", "ListedImages", 1),
            (flat_folder / "l.npy", "ListedImages", 1),
            (tmp_path / "a.npy", "NumpyImages", 3),
            (tmp_path / "a.npz", "NumpyImages", 3),
            (mnist_like[0], "IdxImages", 7),
        ):
            dataset = build("auto", path=path, channels=1)
            assert (type(dataset).__name__, len(dataset), dataset.read(0).mode) == (kind, count, "L")

    def test_what_it_does_not_know(self, tmp_path, flat_folder):
        (tmp_path / "a.parquet").write_bytes(b"x")
        with pytest.raises(UserError, match=r"a\.parquet.*Accepted: a folder of images .*\.csv.*\.npz.*IDX"):
            build("auto", path=tmp_path / "a.parquet")
        with pytest.raises(UserError, match="single image; give the folder"):
            build("auto", path=flat_folder / "00.png")
        np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8))
        with pytest.raises(UserError, match="leave it out"):
            build("auto", path=tmp_path / "a.npy", max_pixels=10)

    def test_home_folder(self, flat_folder, monkeypatch):
        monkeypatch.setenv("HOME", str(flat_folder.parent))
        assert len(build("auto", path="~/photos")) == 10


class TestCache:
    def test_second_reading_comes_from_memory(self, flat_folder):
        dataset = build("folder", path=flat_folder, cache="ram", limit=5)
        before = pixels(dataset)
        for file in flat_folder.iterdir():
            file.unlink()
        assert pixels(dataset) == before
        copied = pickle.loads(pickle.dumps(dataset))
        with pytest.raises(UnreadableImage):
            copied.read(0)  # another process begins with nothing

    def test_stops_at_the_limit_and_says_so_once(self, flat_folder, monkeypatch, caplog):
        monkeypatch.setattr(cache, "MEMORY_LIMIT", cache._used + 3 * 12 * 10 * 3 + 1)
        monkeypatch.setattr(cache, "_announced", False)
        dataset = build("folder", path=flat_folder, cache="ram")
        with caplog.at_level(logging.WARNING):
            before = pixels(dataset)
            assert pixels(dataset) == before
        assert len(dataset._decoded) == 3
        assert caplog.text.count("will be decoded each time") == 1

    def test_threads_that_meet_at_an_image_count_it_once(self):
        store, meeting, used = cache.DecodedImages(), threading.Barrier(4), cache._used

        def load(position):
            meeting.wait(10)  # all four have found nothing
            return np.full((5, 4), position, np.uint8)

        with ThreadPoolExecutor(4) as pool:
            found = [reading.result() for reading in [pool.submit(store.get, 7, load) for _ in range(4)]]
        assert all((image == 7).all() for image in found) and len(store) == 1
        assert cache._used == used + 20
        del store
        assert cache._used == used

    def test_memory_is_given_back(self, flat_folder):
        used = cache._used
        dataset = build("folder", path=flat_folder, cache="ram", channels=1)
        pixels(dataset)
        assert cache._used == used + 10 * 12 * 10
        del dataset
        assert cache._used == used


def test_every_dataset_documents_its_options():
    described = list(DATASETS.components())
    assert len([entry for entry in described if "vissl_like/data/datasets" in str(entry.file)]) == 8
    for entry in described:
        assert not entry.open_options and all(option.doc for option in entry.options.values()), entry.name
