"""Bringing a folder of labelled images into the bucket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bcc_ops.runs.object_store import ObjectStore
from local.images import FolderError, read_folder, upload

CLASSES = ("benign", "malignant", "normal")


def _write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def _listing(store: ObjectStore) -> dict[str, bytes]:
    return {entry["Key"]: store.get(entry["Key"]) for entry in store.list_objects("")}


def test_images_of_classes_are_taken_and_the_rest_is_counted_by_reason(tmp_path: Path) -> None:
    root = _write(
        tmp_path, "benign/a (1).png", "benign/a (1)_mask.png", "normal/deep/b.JPG", "malignant/notes.txt", "cysts/c.png", "README"
    )
    (root / "benign" / "gone.png").symlink_to(root / "nowhere.png")
    folder = read_folder(root, CLASSES)
    assert [str(file) for file in folder.files] == ["benign/a (1).png", "benign/a (1)_mask.png", "normal/deep/b.JPG"]
    assert folder.counts(("*_mask*",)) == {"benign": 1, "normal": 1}
    assert folder.left_out == {
        "file outside a class": 1,
        "folder that is not a class": 1,
        "file that is not an image by its name": 1,
        "broken link or special file": 1,
    }


def test_a_link_that_leads_back_up_ends_nothing_in_a_circle(tmp_path: Path) -> None:
    _write(tmp_path, "benign/a.png")
    (tmp_path / "benign" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [str(file) for file in read_folder(tmp_path, CLASSES).files] == ["benign/a.png"]


def test_names_that_cannot_be_keys_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "benign/good.png", "benign/line\nbreak.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/benign/\xff.png")).write_bytes(b"x")
    folder = read_folder(tmp_path, CLASSES)
    assert [str(file) for file in folder.files] == ["benign/good.png"]
    assert sum(folder.left_out.values()) == 2


@pytest.mark.parametrize(
    ("names", "asked", "line"),
    [
        ([], "missing", "there is no such folder"),
        (["a.png"], "a.png", "is a file; name the folder"),
        (["other/a.png"], "", "no folder of a class (benign, malignant, normal); it holds the folders other"),
        (["a.png"], "", "no folder of a class (benign, malignant, normal); it holds no folder"),
        (["data/benign/a.png"], "", "holds no folder named benign, malignant, normal, but data/ does: IMAGES="),
        (["benign/a.png"], "benign", "is itself the folder of a class; name the one above it"),
        (
            ["Benign/a.png", "NORMAL/b.png", "malignant/c.png"],
            "",
            "rename Benign to benign, NORMAL to normal, or set BCC_CLASSES",
        ),
        (["benign/a.txt"], "", "no image (.png .jpg .jpeg .bmp .dcm) in benign"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_told_in_one_line(tmp_path: Path, names: list[str], asked: str, line: str) -> None:
    _write(tmp_path, *names)
    with pytest.raises(FolderError) as caught:
        read_folder(tmp_path / asked, CLASSES)
    message = str(caught.value)
    assert line in message and str(tmp_path) in message and "\n" not in message


def test_only_what_is_missing_or_differs_is_sent(tmp_path: Path, store: ObjectStore) -> None:
    root = _write(tmp_path, "benign/a.png", "benign/ü+%20 b.png", "normal/c.bmp")
    first = upload(store, "images", read_folder(root, CLASSES))
    assert (first.sent, first.kept, first.elsewhere) == (3, 0, 0)
    assert _listing(store) == {
        "images/benign/a.png": b"benign/a.png",
        "images/benign/ü+%20 b.png": "benign/ü+%20 b.png".encode(),
        "images/normal/c.bmp": b"normal/c.bmp",
    }
    (root / "normal" / "c.bmp").write_bytes(b"normal/d.bmp")  # as long as before
    _write(root, "malignant/new.png")
    second = upload(store, "images", read_folder(root, CLASSES))
    assert (second.sent, second.kept) == (2, 2)
    assert store.get("images/normal/c.bmp") == b"normal/d.bmp"


def test_images_in_the_bucket_that_the_folder_lacks_are_counted(tmp_path: Path, store: ObjectStore) -> None:
    store.put("images/benign/older.png", b"x")
    store.put("images/benign/older.txt", b"x")
    assert upload(store, "images", read_folder(_write(tmp_path, "benign/a.png"), CLASSES)).elsewhere == 1


def test_an_empty_file_goes_along_and_is_not_sent_again(tmp_path: Path, store: ObjectStore) -> None:
    """Whether an empty image may be used is validation's to say."""
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "empty.png").touch()
    assert upload(store, "images", read_folder(tmp_path, CLASSES)).sent == 1
    assert upload(store, "images", read_folder(tmp_path, CLASSES)).sent == 0
