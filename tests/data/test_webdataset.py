"""WebDataset tars: every sample by number, from any process, and damage named."""

import io
import itertools
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from vlmkit.data.formats import tar_index
from vlmkit.data.formats.webdataset import expand_braces, shard_paths, webdataset
from vlmkit.data.sample import IMAGE, FileSlice, Message
from vlmkit.errors import UsageError, VlmkitError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))


MOMENTS = itertools.count(1_700_000_000 * 10**9, 10**9)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def png(value, form="png"):
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(out, form, **({"lossless": True} if form == "webp" else {}))
    return out.getvalue()


def turns(question="what?", answer="a dot"):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def member(content):
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def shard(path, files, form=tarfile.PAX_FORMAT):
    """A tar of (name, content) in this order."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(member(content))
            tar.addfile(info, io.BytesIO(member(content)))
    # Two of one size that are written within a tick of the file system's clock would be the same file to all.
    moment = next(MOMENTS)
    os.utime(path, ns=(moment, moment))
    return str(path)


def red(sample):
    return [image.getpixel((0, 0))[0] for image in sample.open_images()]


def numbered(path, numbers):
    files = [(f"{i:04}.{kind}", png(i) if kind == "png" else turns("<image>", str(i))) for i in numbers
             for kind in ("png", "json")]  # fmt: skip
    return shard(path, files)


def test_shards_are_one_sequence_read_in_any_order(tmp_path):
    for number in range(3):
        numbered(tmp_path / f"d/s-{number}.tar", range(number * 4, number * 4 + 4))
    samples = webdataset(str(tmp_path / "d/s-{0..2}.tar"))
    assert len(samples) == 12
    assert [red(samples[i]) for i in (11, 0, 4, 3, -5)] == [[11], [0], [4], [3], [7]]
    assert samples[5].id == f"{tmp_path}/d/s-1.tar/0005"
    assert [s.conversations[0][1].text for s in samples[3:6]] == ["3", "4", "5"]
    limited = webdataset(str(tmp_path / "d/*.tar"), limit=6)
    assert [red(s) for s in limited] == [[i] for i in range(6)] and len(limited.paths) == 2


def test_what_a_sample_is_made_of(tmp_path):
    long = "deep/" * 30 + "k" * 120
    files = [
        ("a.0.png", png(1)),
        ("a.1.webp", png(2, "webp")),
        ("a.json", turns("<image> or <image>?")),
        ("b.png", png(3)),
        ("b.txt", b"a red dot\n"),
        ("b.cls", b"7"),
        ("b.json", {"width": 3, "caption": "not read"}),
        ("c/d.e/f.json", {"messages": CHAT}),
        ("README", b"of no sample"),
        (f"{long}.PNG", png(4)),
        (f"{long}.json", [{"user": "what?", "assistant": "é"}]),
        ("g.txt", b"a dot"),
        ("g.png", png(5)),
        ("g.json", turns("<image>why?", "so")),
    ]  # fmt: skip
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = shard(tmp_path / f"{form}.tar", files, form)
        a, b, f, k, g = webdataset(path)
        assert [s.id.removeprefix(path) for s in (a, b, f, k, g)] == [
            "/a",
            "/b",
            "/c/d.e/f",
            f"/{long}",
            "/g",
        ]
        assert [red(s) for s in (a, b, f, k, g)] == [[1, 2], [3], [], [4], [5]]
        assert a.conversations[0][0].parts == (IMAGE, " or ", IMAGE, "?") and a.captions == ()
        assert b.conversations == ((Message("user", (IMAGE,)), Message("assistant", ("a red dot",))),)
        assert (b.captions, g.captions) == (("a red dot",), ("a dot",))
        assert k.conversations[0] == (Message("user", (IMAGE, "what?")), Message("assistant", ("é",)))
        assert g.conversations[0][1].text == "so"


def test_an_image_of_another_use_is_shown_to_nobody_unasked(tmp_path):
    files = [("2.jpg", png(1, "jpeg")), ("2.seg.png", png(2)), ("2.txt", b"a dot")]
    path = shard(tmp_path / "a.tar", files)
    with pytest.raises(VlmkitError, match=r"a\.tar, member 2\.seg\.png: .*images: \[seg\.png\]"):
        webdataset(path)
    with pytest.raises(VlmkitError, match=r"member 2\.seg\.png"):
        _ = webdataset(path, check=False)[0]
    for asked, shown in ((["jpg"], ["2.jpg"]), (["seg.png"], ["2.seg.png"]), ([".JPG", "seg.png"], None)):
        (sample,) = webdataset(path, images=asked)
        assert [image.name for image in sample.images] == (shown or ["2.jpg", "2.seg.png"])
    numbers = [("a.0.png", png(1)), ("a.1.png", png(2)), ("a.0.seg.png", png(3)), ("a.txt", b"a dot")]
    (sample,) = webdataset(shard(tmp_path / "b.tar", numbers), images=["png"])
    assert red(sample) == [1, 2]


def test_files_of_a_sample_may_lie_apart(tmp_path):
    files = [(f"{i}.png", png(i)) for i in range(3)] + [(f"{i}.txt", b"dot") for i in (2, 0, 1)]
    assert [red(s) for s in webdataset(shard(tmp_path / "a.tar", files))] == [[0], [1], [2]]


def test_nothing_is_read_before_its_time(tmp_path):
    """An image's bytes are read when it is opened, from where they are in the tar."""
    path = shard(tmp_path / "a.tar", [("a.png", b"no image"), ("a.txt", b"a dot")])
    (sample,) = webdataset(path)
    assert sample.images == (FileSlice(tmp_path / "a.tar", 512, 8, "a.png"),)
    with pytest.raises(VlmkitError, match=r"^sample '.*a\.tar/a': .*a\.tar, member a\.png cannot be read as"):
        sample.open_images()


def test_the_index_is_made_once_and_again_for_another_file(tmp_path, monkeypatch):
    path = numbered(tmp_path / "a.tar", range(3))
    built = []
    build = tar_index._build
    monkeypatch.setattr(tar_index, "_build", lambda *given: built.append(given) or build(*given))
    assert [red(s) for s in webdataset(path)] == [red(s) for s in webdataset(path)] == [[0], [1], [2]]
    assert len(built) == 1 and len(list((tmp_path / "cache/tar").iterdir())) == 1
    numbered(tmp_path / "a.tar", range(5, 9))
    assert [red(s) for s in webdataset(path)] == [[5], [6], [7], [8]] and len(built) == 2
    for cached in (tmp_path / "cache/tar").iterdir():
        cached.write_bytes(b"PK damaged")
    assert len(webdataset(path)) == 4 and len(built) == 3


def test_a_shard_that_is_replaced_while_it_is_in_use_is_refused(tmp_path):
    """Positions in the old one would give other bytes, or another image of the same size."""
    samples = webdataset(numbered(tmp_path / "a.tar", range(3)))
    before = samples[0]
    numbered(tmp_path / "b.tar", range(3, 6))
    (tmp_path / "b.tar").replace(tmp_path / "a.tar")
    for read in (before.open_images, lambda: samples[1].open_images()):
        with pytest.raises(VlmkitError, match=r"a\.tar was changed while it is in use; start again"):
            read()


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(VlmkitError, match=r"index of a shard cannot be written to .* set VLMKIT_CACHE"):
        webdataset(numbered(tmp_path / "a.tar", range(2)))


class Opened:
    """A map-style data set of opened images, as workers see it."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        return red(self.samples[number])[0]


def test_workers_read_the_same_samples_forked_or_pickled(tmp_path):
    for number in range(2):
        numbered(tmp_path / f"s-{number}.tar", range(number * 30, number * 30 + 30))
    samples = webdataset(str(tmp_path / "s-*.tar"))
    assert red(samples[0]) == [0]
    order = np.random.default_rng(0).permutation(60).tolist()
    for own in (samples, pickle.loads(pickle.dumps(samples))):
        loader = DataLoader(Opened(own), None, sampler=order, num_workers=2, multiprocessing_context="fork")
        assert list(loader) == order


def cut(path, at):
    data = (path).read_bytes()
    path.write_bytes(data[:at])


def test_a_tar_that_was_cut_off_is_named_with_its_member_wherever_the_cut_is(tmp_path):
    numbered(tmp_path / "whole.tar", range(3))
    whole = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [m.offset_data + -(-m.size // 512) * 512 for m in tar.getmembers()]
    for at in range(0, ends[-1] + 1, 100):
        path = tmp_path / f"{at}.tar"
        path.write_bytes(whole[:at])
        with pytest.raises(VlmkitError, match=rf"{at}\.tar.*download or write the shard again"):
            webdataset(str(path))
    (tmp_path / "cut.tar").write_bytes(whole[: ends[3] - 300])
    with pytest.raises(VlmkitError, match=r"cut\.tar.*'0001\.json'"):
        webdataset(str(tmp_path / "cut.tar"))
    (tmp_path / "cut.tar").write_bytes(whole[: ends[3]])
    with pytest.raises(
        VlmkitError, match=r"damaged or cut off after '0001\.json': found the end of the file"
    ):
        webdataset(str(tmp_path / "cut.tar"))


def test_a_damaged_header_is_no_end(tmp_path):
    """`tarfile` stops there without a word, and the samples behind it would be gone."""
    numbered(tmp_path / "a.tar", range(3))
    with tarfile.open(tmp_path / "a.tar") as tar:
        third = tar.getmembers()[2]
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[third.offset + 5] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert len(tar.getmembers()) == 2
    with pytest.raises(VlmkitError, match=r"after '0000\.json': found another header that cannot be read"):
        webdataset(str(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.png", b"x"), ("a.txt", b"x"), ("b.png", b"x")], "1 of 2 samples have neither .* first is 'b'"),
        ([("a.png", b"x"), ("a.txt", b" \n")], r"a\.tar/a has neither a conversation nor a caption"),
        ([("a.png", b"x"), ("a.txt", "café".encode("latin-1"))], r"a\.tar, member a\.txt is not UTF-8 text"),
        ([("a.txt", b"dot")], r"a\.tar/a has no image for its caption"),
        ([("a.json", b"{")], r"a\.tar, member a\.json is not JSON"),
        ([("a.json", b"3")], r"member a\.json: an object or a list is needed, found int"),
        ([("a.json", b"\xff")], r"member a\.json is not JSON"),
        ([("a.json", turns("<image>"))], r"a\.tar/a, field 'json': 1 image slots for 0 images"),
        ([("a.json", {**turns(), "texts": []})], r"has conversations and texts; name the one .* text: FIELD"),
        ([("a.png", b"x"), ("a.png", b"y")], r"a\.tar has the member 'a\.png' twice"),
        ([("README", b"x")], "holds no sample"),
    ],
)
def test_samples_that_are_none(tmp_path, files, message):
    with pytest.raises(VlmkitError, match=message) as raised:
        webdataset(shard(tmp_path / "a.tar", files))
    assert "\n" not in str(raised.value)


def test_links_and_packed_tars_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(VlmkitError, match=r"member 'a\.png' is a link or a device"):
        webdataset(str(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(VlmkitError, match=r"a plain tar is needed, not a packed one"):
        webdataset(str(tmp_path / "b.tar"))


def test_names_of_shards(tmp_path):
    assert expand_braces("d/{08..10}-{a,b}.tar") == [
        f"d/{n}-{c}.tar" for n in ("08", "09", "10") for c in "ab"
    ]
    assert expand_braces("plain.tar") == ["plain.tar"]
    for name in ("b", "a", "c{1"):
        (tmp_path / f"{name}.tar").touch()
    named = [str(tmp_path / name) for name in ("b.tar", "[a].tar", "c{1.tar")]
    assert [path.name for path in shard_paths(named)] == ["b.tar", "a.tar", "c{1.tar"]
    for wrong, message in (
        ([f"{tmp_path}/{{a,d}}.tar"], r"there is no file .*d\.tar"),
        ([f"{tmp_path}/*.tar", f"{tmp_path}/a.tar"], r"a\.tar is named twice"),
        (["https://example.org/{0..9}.tar"], "local files; download them first"),
        (["pipe:cat a.tar"], "local files; download them first"),
    ):
        with pytest.raises(UsageError, match=message):
            shard_paths(wrong)
