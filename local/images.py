"""A folder of labelled images, brought into the bucket: only what is missing there or differs."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from bcc_ops.dataset.snapshot import EXTENSIONS, names_image
from bcc_ops.runs.object_store import ObjectStore

_CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".bmp": "image/bmp",
    ".dcm": "application/dicom",
}
_LONGEST_KEY = 1024
_SAY_EVERY = 5.0


class FolderError(ValueError):
    """The folder cannot be the one that was meant. One line that names it and the way out."""


@dataclass(frozen=True)
class ImageFolder:
    """What is in a folder with one folder per class.

    `files` are paths below `root`, sorted; `left_out` counts what is not brought into the bucket, by reason.
    """

    root: Path
    files: tuple[Path, ...]
    left_out: dict[str, int]

    def counts(self, ignored: Sequence[str] = ()) -> dict[str, int]:
        """Class -> images whose names match none of the patterns `ignored`."""
        wanted = (file for file in self.files if not any(fnmatch(file.name.lower(), pattern.lower()) for pattern in ignored))
        return dict(sorted(Counter(file.parts[0] for file in wanted).items()))


@dataclass(frozen=True)
class UploadResult:
    """What an upload did. `elsewhere` counts images in the bucket that are not in the folder."""

    sent: int
    sent_bytes: int
    kept: int
    elsewhere: int
    seconds: float


def read_folder(root: Path, classes: Sequence[str]) -> ImageFolder:
    """See what is in a folder of labelled images.

    Args:
        root: holds one folder per class, named exactly as the class is: the pipeline ignores any other.
        classes: the configured classes.

    Raises:
        FolderError: there is no such folder, no class in it or one only in another case, or no image in any class.
    """
    if not root.exists():
        raise FolderError(f"IMAGES={root}: there is no such folder")
    if not root.is_dir():
        raise FolderError(f"IMAGES={root} is a file; name the folder that holds one folder per class ({', '.join(classes)})")
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise FolderError(f"IMAGES={root} cannot be read: {error.strerror}") from None
    labelled = [entry for entry in entries if entry.is_dir() and entry.name in classes]
    meant = {name.casefold(): name for name in classes}
    other_case = [entry.name for entry in entries if entry.is_dir() and entry not in labelled and entry.name.casefold() in meant]
    if other_case:
        renames = ", ".join(f"{name} to {meant[name.casefold()]}" for name in other_case)
        raise FolderError(
            f"IMAGES={root}: a folder must be named as its class is: rename {renames}, or set BCC_CLASSES and BCC_POSITIVE_CLASS"
        )
    left_out: Counter[str] = Counter()
    for entry in entries:
        if entry not in labelled and not entry.name.startswith("."):
            left_out["folder that is not a class" if entry.is_dir() else "file outside a class"] += 1
    if not labelled:
        raise FolderError(_no_class(root, entries, classes))
    files: list[Path] = []
    for path in (path for folder in labelled for path in _walk(folder)):
        reason = _unusable(path, path.relative_to(root))
        if reason:
            left_out[reason] += 1
        else:
            files.append(path.relative_to(root))
    if not files:
        folders = ", ".join(folder.name for folder in labelled)
        raise FolderError(f"IMAGES={root}: no image ({' '.join(EXTENSIONS)}) in {folders}")
    return ImageFolder(root, tuple(sorted(files)), dict(left_out))


def _no_class(root: Path, entries: Sequence[Path], classes: Sequence[str]) -> str:
    wanted = ", ".join(classes)
    if root.name.casefold() in {name.casefold() for name in classes}:
        return f"IMAGES={root} is itself the folder of a class; name the one above it: IMAGES={root.parent}"
    folders = [entry.name for entry in entries if entry.is_dir()][:5]
    inner = next((entry for entry in entries if entry.is_dir() and any((entry / name).is_dir() for name in classes)), None)
    if inner is not None:
        return f"IMAGES={root} holds no folder named {wanted}, but {inner.name}/ does: IMAGES={inner}"
    found = f"it holds the folders {', '.join(folders)}" if folders else "it holds no folder"
    return f"IMAGES={root}: no folder of a class ({wanted}); {found}. Other classes: BCC_CLASSES and BCC_POSITIVE_CLASS"


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below; links to folders are not followed: one may lead back up."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        elif not entry.is_dir():
            yield entry


def _unusable(path: Path, relative: Path) -> str:
    """Say why a file cannot be an object in the bucket; "" if it can."""
    if not names_image(path.name):
        return "file that is not an image by its name"
    try:
        name = relative.as_posix().encode()
    except UnicodeEncodeError:
        return "name that is not UTF-8"
    if len(name) > _LONGEST_KEY - 100 or any(byte < 32 for byte in name):
        return "name that S3 does not accept (too long, or control characters)"
    return "" if path.is_file() else "broken link or special file"


def upload(
    store: ObjectStore, prefix: str, folder: ImageFolder, say: Callable[[str], None] = print, threads: int = 8
) -> UploadResult:
    """Bring what is missing, or differs in size or content, under `<prefix>/<class>/…`.

    Content is compared by MD5 with the ETag, which is the MD5 of an object written in one piece, as all are here.

    Raises:
        StorageError: the store refused; what was sent by then is whole, and a second call continues from there.
    """
    started = time.monotonic()
    there = {entry["Key"]: (entry["Size"], entry["ETag"].strip('"')) for entry in store.list_objects(f"{prefix}/")}
    keys = {f"{prefix}/{file.as_posix()}": folder.root / file for file in folder.files}

    def send(item: tuple[str, Path]) -> int:
        key, path = item
        content = path.read_bytes()
        if key in there and there[key] == (len(content), hashlib.md5(content, usedforsecurity=False).hexdigest()):
            return 0
        store.put(key, content, content_type=_CONTENT_TYPES.get(path.suffix.lower(), "application/dicom"))
        return len(content) or 1

    sent = sent_bytes = 0
    last_said = started
    with ThreadPoolExecutor(threads, thread_name_prefix="upload") as pool:
        try:
            for done, size in enumerate(pool.map(send, keys.items()), start=1):
                sent += size > 0
                sent_bytes += size
                if time.monotonic() - last_said > _SAY_EVERY:
                    last_said = time.monotonic()
                    say(f"  {done} of {len(keys)} files, {sent_bytes / 1e6:.0f} MB sent")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    images_elsewhere = sum(key not in keys and names_image(key.rpartition("/")[2]) for key in there)
    return UploadResult(sent, sent_bytes, len(keys) - sent, images_elsewhere, time.monotonic() - started)
