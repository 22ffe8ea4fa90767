from __future__ import annotations

import errno
import os
import sys

import pytest

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.scan import scan


def names(result, folder) -> list[str]:
    return sorted(os.path.relpath(id, folder) for id in result.files)


def test_images_are_found_at_any_depth_by_suffix(photos):
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden.png").write_bytes(b"x")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "thumb.png").write_bytes(b"x")
    (photos / "LOUD.JPG").write_bytes(b"x")
    assert names(scan([photos]), photos) == ["LOUD.JPG", "deep/blue.png", "green.png", "red.png"]


def test_every_spelling_of_a_path_gives_the_same_ids(photos, monkeypatch):
    (photos.parent / "alias").symlink_to(photos)
    expected = scan([photos]).files
    monkeypatch.chdir(photos.parent)
    for spelling in ("photos", "./photos/", "photos/../photos", "alias"):
        assert scan([spelling]).files == expected
    assert scan(["photos", "photos/deep", "photos/red.png"]).files == expected


def test_a_link_is_followed_only_inside_its_root(photos, save_image):
    secret = save_image(photos.parent / "secret.png", "white")
    (photos / "inside.png").symlink_to(photos / "red.png")
    (photos / "outside.png").symlink_to(secret)
    (photos / "dangling.png").symlink_to(photos / "nothing.png")
    (photos / "folder").symlink_to(photos.parent)
    result = scan([photos])
    assert names(result, photos) == ["deep/blue.png", "green.png", "inside.png", "red.png"]
    reasons = {os.path.basename(bad.path): bad.reason for bad in result.unreadable}
    assert reasons == {
        "outside.png": "a link that leaves the synced folder",
        "dangling.png": "No such file or directory",
        "folder": "a link to a folder is not followed; sync its target instead",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names and pipes")
def test_odd_files_are_listed_not_opened(photos):
    os.mkfifo(photos / "pipe.png")
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    reasons = [bad.reason for bad in scan([photos]).unreadable]
    assert sorted(reasons) == ["its name is not valid UTF-8; rename it", "not a regular file"]


def test_a_named_file_must_be_an_image(photos):
    (photos / "notes.txt").write_text("no image")
    with pytest.raises(RetrievalError, match=r"notes\.txt is no file of those looked for \(possible: \.png"):
        scan([photos / "notes.txt"])


def test_an_unreadable_folder_does_not_cover_its_items(photos):
    result = scan([photos])
    (photos / "link").symlink_to(photos.parent)
    blocked = scan([photos])
    inside = f"{photos.as_posix()}/link/old.png"
    assert result.covers(inside)
    assert not blocked.covers(inside)
    assert not result.covers(f"{photos.as_posix()}-other/red.png")


def test_a_disk_that_went_away_below_a_root_does_not_cover_its_items(photos, monkeypatch):
    """A network disk, say: neither listing it nor asking for its state works."""
    real = os.scandir, os.stat

    def gone(own):
        def ask(path=".", *args, **kwargs):
            if str(path) == str(photos / "deep"):
                raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
            return own(path, *args, **kwargs)

        return ask

    monkeypatch.setattr(os, "scandir", gone(real[0]))
    monkeypatch.setattr(os, "stat", gone(real[1]))
    result = scan([photos])
    monkeypatch.undo()
    assert [bad.reason for bad in result.unreadable] == ["Transport endpoint is not connected"]
    assert not result.covers(f"{photos.as_posix()}/deep/blue.png")
    assert result.covers(f"{photos.as_posix()}/red.png")


def test_a_root_may_begin_with_a_tilde(tmp_path, save_image, monkeypatch):
    save_image(tmp_path / "~nobody at all" / "a.png", "red")
    monkeypatch.chdir(tmp_path)
    assert list(scan(["~nobody at all"]).files) == [f"{tmp_path.as_posix()}/~nobody at all/a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_root_that_no_manifest_could_name_is_refused(tmp_path, save_image):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    save_image(root / "a.png", "red")
    with pytest.raises(RetrievalError, match=r"caf\\udce9: the name is not valid UTF-8; rename it"):
        scan([root])
