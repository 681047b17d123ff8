"""Images in tar archives: found as Python's tarfile finds them, read in place, and every damage said."""

import gzip
import io
import logging
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
import torch

from vissl_like.data import tar_scan
from vissl_like.data.datasets.base import UnreadableImage
from vissl_like.data.datasets.tar import archives_of
from vissl_like.data.loader import TrainLoader
from vissl_like.data.tar_members import TarReader
from vissl_like.registry import DATASETS, SAMPLERS, TRANSFORMS
from vissl_like.utils.errors import UserError

LONG = "folder/" + "x" * 120 + "/" + "y" * 120


@pytest.fixture
def png(picture):
    """``png(number)``: the bytes of ``picture(number)``."""

    def make(number=0, size=(12, 10)):
        buffer = io.BytesIO()
        picture(number, size).save(buffer, "PNG")
        return buffer.getvalue()

    return make


def pack(file, members, form=tarfile.GNU_FORMAT, age=60):
    """Writes ``(name, bytes)`` members; the archive is old enough for its index to be kept."""
    with tarfile.open(file, "w", format=form) as archive:
        for name, data in members:
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            archive.addfile(facts, io.BytesIO(data))
    moment = time.time() - age
    os.utime(file, (moment, moment))
    return file


def change(file, offset, data, age=30):
    with open(file, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)
    os.utime(file, (time.time() - age,) * 2)


def cut(file, size, age=30):
    os.truncate(file, size)
    os.utime(file, (time.time() - age,) * 2)


def build(path, **options):
    return DATASETS.get("tar")(path=str(path), **options)


def open_archives(folder):
    links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    opened = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [file for file in opened if file.startswith(str(folder)) and file.endswith(".tar")]


def names(dataset):
    return [dataset.path(index).rpartition(":")[2] for index in range(len(dataset))]


def pixels(dataset, index=0):
    return np.asarray(dataset.read(index)).tolist()


@pytest.fixture
def shards(tmp_path, png):
    """Three webdataset shards of four samples: an image, a class, facts, a caption."""
    for shard in range(3):
        members = []
        for number in range(4 * shard, 4 * shard + 4):
            members += [
                (f"{number:04d}.cls", str(number % 3).encode()),
                (f"{number:04d}.png", png(number)),
                (f"{number:04d}.json", b'{"kind": %d, "caption": "a.png"}' % (number % 5)),
                (f"{number:04d}.txt", b"a caption"),
            ]
        pack(tmp_path / f"shard-{shard:02d}.tar", members)
    return tmp_path


class TestReading:
    def test_samples_of_shards(self, shards, picture):
        dataset = build(shards / "shard-{00..02}.tar")
        assert len(dataset) == 12 and names(dataset) == [f"{number:04d}.png" for number in range(12)]
        assert all(pixels(dataset, index) == np.asarray(picture(index)).tolist() for index in range(12))
        assert dataset.labels.tolist() == [number % 3 for number in range(12)] and dataset.skipped == []
        assert dataset.path(5) == f"{shards}/shard-01.tar:0005.png"
        assert dataset.header(5) == ("PNG", (12, 10))
        facts = dataset.describe()
        assert facts["labels"] == "3 classes" and facts["formats"] == {"PNG": 12} and facts["unreadable_headers"] == 0

    def test_which_labels(self, shards, tmp_path, png):
        assert build(shards, labels="none").labels is None
        assert build(shards, json_key="kind").labels.tolist() == [number % 3 for number in range(12)]  # .cls is first
        members = [(f"{n}.{e}", d) for n in range(6) for e, d in (("json", b'{"kind": %d}' % (n % 5)), ("png", png(n)))]
        plain = pack(tmp_path / "json.tar", members)
        assert build(plain, json_key="kind").labels.tolist() == [0, 1, 2, 3, 4, 0]
        assert build(plain).labels is None and build(plain, json_key="other").labels is None

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_formats_agree_with_pythons_reader(self, tmp_path, png, form):
        listed = ["a.png", "sub/b.JPG", "sub/deeper/c.png", "p" * 96 + ".png", "d/" * 60 + "e.png", "notes.txt"]
        listed += [] if form == tarfile.USTAR_FORMAT else [LONG + ".png", "ä ö.png"]
        file = tmp_path / "any.tar"
        with tarfile.open(file, "w", format=form) as archive:
            folder = tarfile.TarInfo("sub")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                link = tarfile.TarInfo(f"link{kind.decode()}.png")
                link.type, link.linkname = kind, "a.png"
                archive.addfile(link)
            for number, name in enumerate(listed):
                facts = tarfile.TarInfo(name)
                data = png(number)
                facts.size, facts.mtime = len(data), 1234567890.5
                facts.uid = 0 if form == tarfile.USTAR_FORMAT else 3_000_000  # beyond what octal digits hold
                archive.addfile(facts, io.BytesIO(data))
        with tarfile.open(file) as archive:
            expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers() if m.isreg()]
        with open(file, "rb") as stream:
            found = [(m.name.decode(), m.offset, m.size) for m in TarReader(stream.fileno()).members()]
        assert found == expected and [name for name, _, _ in found] == listed
        dataset = build(file)
        assert sorted(names(dataset)) == sorted(name for name in listed if name != "notes.txt")

    def test_members_of_a_sample_need_not_be_neighbours(self, tmp_path, png):
        members = [("1.cls", b"7\n"), ("b/1.cls", b"2"), ("0.png", png(0)), ("1.png", png(1)), ("b/1.png", png(2))]
        dataset = build(pack(tmp_path / "x.tar", [*members, ("0.cls", b"5")]))
        assert names(dataset) == ["0.png", "1.png", "b/1.png"] and dataset.labels.tolist() == [5, 7, 2]

    def test_names_with_several_dots(self, tmp_path, png):
        members = [
            "0001.jpg",
            "0001.mask.png",
            "my.photo.1.png",
            "my.photo.2.png",
            ".hidden.png",
            "._0001.jpg",
            "readme",
        ]
        dataset = build(pack(tmp_path / "x.tar", [(name, png(n)) for n, name in enumerate(members)]))
        assert names(dataset) == ["0001.jpg", "my.photo.1.png", "my.photo.2.png"]
        assert dataset.index.others == {"(hidden or no ending)": 3} and dataset.skipped == []

    def test_sizes_above_eight_gibibytes(self, tmp_path):
        """Base 256 in the header (GNU), and a record (pax); the file is all hole."""
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            big = tarfile.TarInfo("big.bin")
            big.size = 9 * 2**30
            file = tmp_path / f"{form}.tar"
            with open(file, "wb") as stream:
                header = big.tobuf(form)
                stream.write(header)
                stream.truncate(len(header) + big.size + 1024)
            with open(file, "rb") as stream:
                (member,) = TarReader(stream.fileno()).members()
            assert (member.size, member.offset) == (big.size, len(header))

    def test_part_limit_and_memory(self, shards):
        dataset = build(shards, limit=5, cache="ram", channels=1)
        assert len(dataset) == 5 == len(dataset.labels) and dataset.read(0).mode == "L"
        kept = dataset.read_pixels(0)
        assert kept is dataset.read_pixels(0) and kept.tobytes() == dataset.read(0).tobytes()

    def test_auto_takes_archives(self, shards):
        auto = DATASETS.get("auto")
        assert len(auto(path=str(shards / "shard-01.tar"))) == 4
        assert len(auto(path=str(shards / "shard-{00,02}.tar"), max_pixels=10**6, limit=7)) == 7
        with pytest.raises(UserError, match="compressed, and a member cannot be read alone; unpack it with gunzip"):
            (shards / "x.tar.gz").write_bytes(gzip.compress((shards / "shard-01.tar").read_bytes()))
            auto(path=str(shards / "x.tar.gz"))


class TestIndex:
    def test_kept_and_mapped(self, shards, own_cache, monkeypatch):
        first = build(shards)
        monkeypatch.setattr(tar_scan._Scan, "add", None)  # a second scan would fail
        again = build(shards)
        assert names(again) == names(first) and again.labels.tolist() == first.labels.tolist()
        assert again.index.folder is not None and not again.index.places.flags.writeable
        stored = sum(file.stat().st_size for file in again.index.folder.rglob("*") if file.is_file())
        assert stored < 2500
        copied = pickle.dumps(again)
        assert len(copied) < 2000
        assert pixels(pickle.loads(copied), 3) == pixels(first, 3)
        assert pickle.loads(copied).labels.tolist() == first.labels.tolist()

    def test_a_changed_archive_is_read_again(self, shards, png):
        assert len(build(shards)) == 12
        pack(shards / "shard-01.tar", [("new.png", png(1))], age=20)
        assert len(build(shards, labels="none")) == 9

    def test_without_a_cache(self, shards, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("VISSL_LIKE_CACHE", str(tmp_path / "file" / "below"))
        dataset = build(shards)
        assert dataset.index.folder is None
        assert pixels(pickle.loads(pickle.dumps(dataset)), 9) == pixels(dataset, 9)

    @pytest.mark.parametrize("name", ["tar.json", "places.npy", "first.npy", "names", "labels.npy"])
    @pytest.mark.parametrize("damage", [b"", b"garbage", b"{}"])
    def test_a_damaged_index_is_built_again(self, shards, caplog, name, damage):
        kept = build(shards).index.folder
        (kept / ("paths.npy" if name == "names" else name)).write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            assert len(build(shards)) == 12
        assert "damaged" in caplog.text

    def test_few_archives_are_open_at_a_time(self, tmp_path, png, monkeypatch):
        for number in range(6):
            pack(tmp_path / f"{number}.tar", [("a.png", png(number))])
        monkeypatch.setattr("vissl_like.data.datasets.tar._OPEN_AT_ONCE", 2)
        dataset = build(tmp_path)
        first = [pixels(dataset, index) for index in range(6)]
        assert len(dataset._open) == 2 == len(open_archives(tmp_path))
        assert first == [pixels(dataset, index) for index in range(6)]
        del dataset
        assert not open_archives(tmp_path)


class TestPatterns:
    def test_all_ways_to_name_archives(self, shards):
        files = [str(shards / f"shard-{number:02d}.tar") for number in range(3)]
        (shards / "list.txt").write_text(f"shard-02.tar\n\n{files[0]}\n")
        (shards / "odd[1].tar").symlink_to(files[0])
        assert archives_of(files[1]) == files[1:2]
        assert archives_of(str(shards / "shard-*.tar")) == files
        assert archives_of(str(shards / "shard-{00..02}.tar")) == files
        assert archives_of(str(shards / "shard-0{2,0}.tar")) == [files[2], files[0]]
        assert archives_of(str(shards / "{shard-00,shard-01}.tar")) == files[:2]
        assert archives_of(str(shards / "s{hard-0}{0..1}.{tar}")) == files[:2]
        assert archives_of(str(shards / "shard-{00,*}.tar")) == files  # each once
        assert archives_of(str(shards / "list.txt")) == [files[2], files[0]]
        assert archives_of(str(shards / "odd[1].tar")) == [str(shards / "odd[1].tar")]
        assert archives_of(str(shards)) == [str(shards / "odd[1].tar"), *files]

    @pytest.mark.parametrize(
        "pattern, words",
        [
            ("shard-{00..09}.tar", "7 of the 10 archives .* do not exist:\n.*shard-03.tar"),
            ("none-*.tar", "no file matches"),
            ("x{0..99999999}.tar", "names 100000000 archives; it can be 1 to 1000000"),
            ("x{5..2}.tar", "names 0 archives"),
            ("shard-1.tar", "does not exist.* Did you mean 'shard-01.tar'"),
        ],
    )
    def test_archives_that_are_not_there(self, shards, pattern, words):
        with pytest.raises(UserError, match=words):
            build(shards / pattern)

    def test_a_folder_without_archives(self, flat_folder):
        with pytest.raises(UserError, match="names no archives"):
            build(flat_folder)


class TestDamage:
    def test_a_header_in_the_middle(self, tmp_path, png, caplog):
        file = pack(tmp_path / "x.tar", [(f"{number}.png", png(number)) for number in range(5)])
        with tarfile.open(file) as archive:
            place = archive.getmember("3.png").offset
        change(file, place + 20, b"\xff\xfe\xfd")
        with caplog.at_level(logging.WARNING):
            dataset = build(file)
        assert names(dataset) == ["0.png", "1.png", "2.png"]
        (said,) = dataset.skipped
        assert said.path == str(file) and f"no valid header at byte {place}" in said.reason
        assert "the 3 images before it are used" in said.reason and str(file) in caplog.text

    @pytest.mark.parametrize("part, kept", [("data", 3), ("header", 3), ("padding", 4), ("end", 5)])
    def test_cut_off(self, tmp_path, png, part, kept):
        file = pack(tmp_path / "x.tar", [(f"{number}.png", png(number)) for number in range(5)])
        with tarfile.open(file) as archive:
            third, last = archive.getmember("3.png"), archive.getmember("4.png")
        assert third.size % 512 and last.size % 512
        sizes = {
            "data": third.offset_data + 9,
            "header": third.offset + 99,
            "padding": third.offset_data + third.size + 1,
        }
        cut(file, sizes.get(part, last.offset_data + -(-last.size // 512) * 512))
        dataset = build(file)
        assert len(dataset) == kept
        assert [item.reason.count("cut off") for item in dataset.skipped] == ([] if part == "end" else [1])

    def test_not_an_archive_among_others(self, shards):
        (shards / "shard-03.tar").write_bytes(b"<html>404 not found</html>" * 100)
        (shards / "shard-04.tar").write_bytes(b"")
        dataset = build(shards)
        assert len(dataset) == 12
        assert [item.reason for item in dataset.skipped] == [
            "it is not a tar archive",
            "the file ends at byte 0, within the header at byte 0: it is cut off",
        ]

    @pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"nothing" * 500])
    def test_nothing_but_damage(self, tmp_path, content):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"there are no images in .*x.tar' \(1 archive"):
            build(tmp_path / "x.tar")

    def test_no_images(self, tmp_path):
        with pytest.raises(UserError, match=r"Other members there: 2 .txt, 1 .wav. Endings tried"):
            build(pack(tmp_path / "x.tar", [("a.txt", b"1"), ("b.txt", b"2"), ("a.wav", b"3")]))

    def test_archives_joined_with_cat(self, shards, png):
        big = pack(shards / "big.tar", [(f"{number}.png", png(number, (200, 200))) for number in range(3)])
        joined = shards / "joined.tar"
        joined.write_bytes((shards / "shard-00.tar").read_bytes() + big.read_bytes())
        dataset = build(joined)
        assert len(dataset) == 4 and "bytes follow the end mark" in dataset.skipped[0].reason

    def test_unreadable_images_are_said_when_read(self, tmp_path, png):
        members = [("good.png", png(1)), ("bad.png", b"\x89PNG nothing"), ("huge.png", png(2, (300, 300)))]
        dataset = build(pack(tmp_path / "x.tar", members), max_bytes=10_000)
        for index, words in ((1, "broken header"), (2, "bytes are more than the limit max_bytes = 10000")):
            with pytest.raises(UnreadableImage, match=words) as caught:
                dataset.read(index)
            assert caught.value.path == f"{tmp_path}/x.tar:{members[index][0]}"
        assert dataset.describe()["unreadable_headers"] == 2
        with pytest.raises(UnreadableImage, match="max_pixels"):
            build(tmp_path / "x.tar", max_pixels=10_000).read(2)
        with pytest.raises(UserError, match=r"none of the 1 files tried"):
            build(pack(tmp_path / "y.tar", members[1:2]))

    def test_an_archive_that_shrinks_or_goes_while_it_is_used(self, tmp_path, png):
        dataset = build(pack(tmp_path / "x.tar", [("a.png", png(1)), ("b.png", png(2))]))
        os.truncate(tmp_path / "x.tar", 700)
        with pytest.raises(UnreadableImage, match="shorter than when it was indexed"):
            dataset.read(1)
        other = build(pack(tmp_path / "y.tar", [("a.png", png(1))]))
        (tmp_path / "y.tar").unlink()
        pixels(other)  # open already
        with pytest.raises(UnreadableImage, match="No such file"):
            pickle.loads(pickle.dumps(other)).read(0)

    def test_empty_members_and_second_ones(self, tmp_path, png):
        members = [("a.png", png(1)), ("b.png", b""), ("a.jpg", png(2)), ("a.png", png(3)), ("c.d.png", png(4))]
        dataset = build(pack(tmp_path / "x.tar", [*members, ("c.d.png", png(5))]))
        assert names(dataset) == ["a.png", "c.d.png"] and pixels(dataset)[0] == pixels(build(tmp_path / "x.tar"))[0]
        second = "a second image of this name in the archive; the first is used"
        assert [(item.path.rpartition(":")[2], item.reason) for item in dataset.skipped] == [
            ("b.png", "empty file"),
            ("a.jpg", second),
            ("a.png", second),
            ("c.d.png", second),
        ]

    def test_names_that_lead_outside_are_only_names(self, tmp_path, png, caplog):
        members = [("../../outside.png", png(1)), ("/etc/absolute.png", png(2)), ("in\n\x1b[31mside.png", png(3))]
        before = sorted(os.listdir(tmp_path.parent))
        with caplog.at_level(logging.WARNING):
            dataset = build(pack(tmp_path / "x.tar", members))
        assert len(dataset) == 3 and pixels(dataset, 1)
        assert "2 members have names that lead outside" in caplog.text
        assert dataset.path(2).endswith(r"in\n\x1b[31mside.png")  # nothing that a terminal would obey
        assert sorted(os.listdir(tmp_path.parent)) == before and os.listdir(tmp_path) == ["x.tar"]

    @pytest.mark.parametrize(
        "classes, words",
        [
            ([b"1", None, b"2"], "2 of the 3 images .* have a class"),
            ([b"1", b"cat", b"2"], "1 of 3 are no whole numbers"),
            ([b"1", b"70000", b"2"], "the largest of the others being 70000"),
            ([b"1", b"-1", b"9" * 500], "2 of 3 are no whole numbers"),
        ],
    )
    def test_labels_that_do_not_do(self, tmp_path, png, classes, words):
        members = [(f"{n}.png", png(n)) for n in range(3)]
        members += [(f"{n}.cls", text) for n, text in enumerate(classes) if text is not None]
        file = pack(tmp_path / "x.tar", members)
        with pytest.raises(UserError, match=words):
            build(file)
        assert len(build(file, labels="none")) == 3

    @pytest.mark.parametrize(
        "text", [b"[" * 100_000, b"\xff\xfe", b'{"kind": true}', b'{"kind": 1e3}', b'{"kind": -1}']
    )
    def test_json_that_does_not_do(self, tmp_path, png, text):
        file = pack(tmp_path / "x.tar", [("0.png", png(0)), ("0.json", text)])
        with pytest.raises(UserError, match="1 of 1 are no whole numbers"):
            build(file, json_key="kind")

    def test_json_without_the_entry(self, tmp_path, png):
        file = pack(tmp_path / "x.tar", [("0.png", png(0)), ("0.json", b"[1, 2]")])
        assert build(file, json_key="kind").labels is None


class TestTraining:
    def loader(self, dataset, start=0, rank=0, world=1, batch=4, workers=0, **options):
        sampler = SAMPLERS.get("permutation")(len(dataset), batch, 1, rank, world, 3, block=4, mixed=2)
        transform = TRANSFORMS.get("multi_crop")(3, views=[{"count": 2, "size": 8, "scale": [0.5, 1.0]}])
        return TrainLoader(
            dataset, transform, sampler, workers=workers, start_step=start, total_steps=6, seed=3, **options
        )

    def test_resuming_and_dividing_give_the_same_batches(self, shards):
        dataset = build(shards, labels="none")
        straight = list(self.loader(dataset))
        for whole, again in zip(straight[2:], self.loader(dataset, start=2), strict=True):
            assert torch.equal(whole.index, again.index)
            assert all(torch.equal(a, b) for a, b in zip(whole.views, again.views, strict=True))
        first, second = (list(self.loader(dataset, rank=rank, world=2, batch=2)) for rank in (0, 1))
        for whole, one, two in zip(straight, first, second, strict=True):
            assert torch.equal(whole.index, torch.cat([one.index, two.index]))

    @pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_workers_read_the_same(self, shards, method):
        dataset = build(shards)
        dataset.read(0)  # an archive is open when workers start
        for alone, helped in zip(
            self.loader(dataset), self.loader(dataset, workers=1, start_method=method), strict=True
        ):
            assert torch.equal(alone.index, helped.index) and torch.equal(alone.views[0], helped.views[0])
            assert torch.equal(alone.label, helped.label)

    def test_a_corrupt_member_in_the_middle_is_skipped_and_said(self, shards):
        """The archive is damaged while training reads it: the image is replaced and named, the run goes on."""
        dataset = build(shards)
        loader = self.loader(dataset, max_skipped=1)
        batches = iter(loader)
        seen = [next(batches) for _ in range(3)]
        offset, size = dataset.index.places[5].tolist()
        with open(shards / "shard-01.tar", "r+b") as stream:
            stream.seek(offset + 30)
            stream.write(b"\0" * (size - 30))
        seen += list(batches)
        assert len(seen) == 6 and all(len(batch.index) == 4 for batch in seen)
        later = torch.cat([batch.index for batch in seen[3:]]).tolist()
        assert 5 not in later and later.count(6) == 2
        assert [item.path for item in loader.skipped] == [f"{shards}/shard-01.tar:0005.png"]
        assert [len(batch.skipped) for batch in seen[:3]] == [0, 0, 0]
