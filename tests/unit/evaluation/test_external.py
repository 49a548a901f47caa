"""Which images of an external test set the models are asked about."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.image_checks import inspect_file
from bcc_ops.dataset.pseudonyms import Pseudonyms
from bcc_ops.dataset.sync import sync_images
from bcc_ops.evaluation.external import ExternalImages, ExternalSearch, OwnImages
from bcc_ops.runs.documents import ExternalDuplicate
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import SplitRow
from tests.factories.dicom_files import dicom_file

CLASSES = ("benign", "malignant", "normal")


def picture(seed: int) -> Image.Image:
    """Texture that no other seed has."""
    noise = np.random.default_rng(seed).normal(0, 60, (24, 24))
    smooth = Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8))
    return smooth.resize((160, 160), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def own_images(folder: Path, contents: Sequence[bytes], seen: frozenset[str] = frozenset()) -> OwnImages:
    """The images of a run's split, with their pixels' digests as the image checks have them."""
    folder.mkdir(exist_ok=True)
    rows, files = [], {}
    for number, content in enumerate(contents):
        path = folder / f"{number}.png"
        path.write_bytes(content)
        mark = inspect_file(path, 8, 10**7).fingerprint
        assert mark is not None
        rows.append(SplitRow(f"images/{number}.png", hashlib.sha256(content).hexdigest(), "benign", "g", 1, mark.pixels))
        files[f"images/{number}.png"] = path
    return OwnImages.of(rows, seen, files)


class Place:
    """A bucket with external test sets, and a run that looks at them with everything that was uploaded by then."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store, self.folder = store, folder

    def put(self, prefix: str, objects: dict[str, bytes]) -> None:
        for key, content in objects.items():
            self.store.put(f"{prefix}/{key}", content)

    def find(
        self,
        own: Sequence[bytes] = (),
        *,
        seen: frozenset[str] = frozenset(),
        grouping: str = "near-duplicate group",
        **given: Any,
    ) -> tuple[ExternalImages, ...]:
        def pseudonyms() -> Pseudonyms:
            return Pseudonyms(b"the deployment's salt")

        search = ExternalSearch(
            store=self.store,
            config=RetrainingConfig.resolve({"external_prefixes": "elsewhere/", **given}),
            classes=CLASSES,
            grouping=grouping,
            as_of=datetime.now(timezone.utc) + timedelta(days=1),
            fetch=partial(sync_images, self.store, cache=ImageCache(self.folder / "cache", 10**9), pseudonyms=pseudonyms),
            own=own_images(self.folder / "own", own, seen),
            pseudonyms=pseudonyms,
        )
        return search.find(self.folder / "contents.sqlite3")


@pytest.fixture
def place(store: ObjectStore, tmp_path: Path) -> Place:
    return Place(store, tmp_path)


def test_near_duplicates_from_elsewhere_are_one_group_and_what_a_run_refuses_is_left_out(place: Place) -> None:
    objects = {
        "benign/a.png": encoded(picture(1)),
        "benign/a-again.jpg": encoded(picture(1), "JPEG"),
        "malignant/b.png": encoded(picture(2)),
        "malignant/c.png": encoded(picture(3)),
        "normal/c.jpg": encoded(picture(3), "JPEG"),
        "normal/d.png": encoded(picture(4)),
        "normal/small.png": encoded(picture(5).resize((32, 32))),
        "normal/broken.png": b"no image",
    }
    place.put("elsewhere", objects)
    (found,) = place.find()
    assert found.note == (
        "4 images in 3 near-duplicate groups under elsewhere/ (2 benign, 1 malignant, 1 normal); left out: "
        "1 not an image, 1 too small, 2 under two labels."
    )
    images = found.images
    assert images.keys == (
        "elsewhere/benign/a-again.jpg",
        "elsewhere/benign/a.png",
        "elsewhere/malignant/b.png",
        "elsewhere/normal/d.png",
    )
    assert images.labels == ("benign", "benign", "malignant", "normal")
    assert images.groups[0] == images.groups[1] and len(set(images.groups)) == 3
    assert [path.read_bytes() for path in images.paths] == [objects[key.removeprefix("elsewhere/")] for key in images.keys]


def test_what_shows_an_own_image_is_left_out_counted_and_named(place: Place) -> None:
    """By its bytes, by its pixels, and as a near-duplicate."""
    own = [encoded(picture(seed)) for seed in (1, 2, 3)]
    place.put(
        "elsewhere",
        {
            "benign/bytes.png": own[0],
            "benign/pixels.bmp": encoded(picture(2), "BMP"),
            "malignant/lossy.jpg": encoded(picture(3), "JPEG"),
            "normal/other.png": encoded(picture(4)),
        },
    )
    (found,) = place.find(own)
    assert found.images.keys == ("elsewhere/normal/other.png",)
    assert found.left_out == {"also in this run": 2, "near-duplicates of own images": 1}
    assert found.near_duplicates == (ExternalDuplicate(key="elsewhere/malignant/lossy.jpg", own="images/2.png"),)
    assert found.compared >= 2
    assert found.note.endswith(
        f"Pairs with an own image whose pixels were compared: {found.compared}. The first near-duplicate is "
        "elsewhere/malignant/lossy.jpg, of images/2.png. It has no benign and no malignant image: metrics that need one are "
        "missing."
    )


def test_a_metadata_table_beside_a_set_tells_its_patients(place: Place) -> None:
    place.store.put("elsewhere/metadata.csv", b"key,patient_id\n*ANNA_*,17\n*BERT_*,18\n")
    names = ("benign/ANNA_1.png", "benign/ANNA_2.png", "malignant/BERT_1.png", "normal/unknown.png")
    place.put("elsewhere", {name: encoded(picture(number)) for number, name in enumerate(names)})
    (found,) = place.find()
    assert found.note == "4 images in 3 patients under elsewhere/ (2 benign, 1 malignant, 1 normal)."
    assert found.images.groups[0] == found.images.groups[1] and len(set(found.images.groups)) == 3


def test_the_patients_whom_dicom_files_name_are_those_of_the_table(place: Place) -> None:
    scans = {
        f"benign/{seed}.dcm": dicom_file(np.asarray(picture(seed)), PatientID=patient)
        for seed, patient in enumerate(("ANNA", "ANNA", "BERT"))
    }
    place.put("elsewhere", {**scans, "malignant/c.png": encoded(picture(3)), "normal/d.png": encoded(picture(4))})
    place.store.put("elsewhere/metadata.csv", b"key,patient_id\n*c.png,anna\n")
    (found,) = place.find()
    assert found.note == "5 images in 3 patients under elsewhere/ (3 benign, 1 malignant, 1 normal)."
    of_anna = {group for key, group in zip(found.images.keys, found.images.groups) if key.endswith(("0.dcm", "1.dcm", "c.png"))}
    assert len(of_anna) == 1


def test_the_other_images_of_a_patient_who_has_an_own_image_are_left_out_too(place: Place) -> None:
    place.put(
        "elsewhere",
        {
            "benign/ANNA_1.jpg": encoded(picture(1), "JPEG"),
            "benign/ANNA_2.png": encoded(picture(2)),
            "malignant/BERT_1.png": encoded(picture(3)),
            "malignant/BERT_2.png": encoded(picture(4)),
            "normal/unknown.png": encoded(picture(5)),
        },
    )
    (found,) = place.find([encoded(picture(1))], grouping="patient", patient_pattern=r"/([A-Z]{4})_")
    assert found.left_out == {"near-duplicates of own images": 1, "of a patient with an own image": 1}
    assert found.note.startswith("3 images in 2 patients under elsewhere/ (0 benign, 2 malignant, 1 normal); left out: ")
    assert found.images.groups[0] == found.images.groups[1]


def test_what_only_the_champion_has_seen_is_recognised_by_its_digests(place: Place) -> None:
    content = encoded(picture(1))
    place.put(
        "elsewhere", {"benign/a.png": content, "benign/b.jpg": encoded(picture(1), "JPEG"), "normal/c.png": encoded(picture(2))}
    )
    (found,) = place.find(seen=frozenset({hashlib.sha256(content).hexdigest()}))
    assert found.images.keys == ("elsewhere/normal/c.png",)
    assert found.near_duplicates == (ExternalDuplicate(key="elsewhere/benign/b.jpg", own=None),)
    assert found.compared == 0


def test_each_set_is_its_own_and_what_two_have_is_used_once_in_each(place: Place) -> None:
    shared = {"malignant/same.png": encoded(picture(1)), "benign/alike.png": encoded(picture(2))}
    place.put("Ulm", {**shared, "normal/ulm.png": encoded(picture(3))})
    place.put("far/Lima", {**shared, "benign/alike.png": encoded(picture(2), "JPEG"), "normal/lima.png": encoded(picture(4))})
    first, second = place.find(external_prefixes="Ulm, peru=far/Lima/")
    assert (first.name, first.prefix, second.name, second.prefix) == ("Ulm", "Ulm", "peru", "far/Lima")
    assert len(first.images.keys) == len(second.images.keys) == 3
    assert (first.elsewhere, second.elsewhere) == (
        frozenset(),
        frozenset({"far/Lima/malignant/same.png", "far/Lima/benign/alike.png"}),
    )
    assert second.note.endswith("2 images show what an earlier set shows; each set has its own metrics, and uses them.")


def test_images_from_elsewhere_that_are_all_refused_or_not_there_yet_fail_no_run(place: Place) -> None:
    assert place.find(external_prefixes="") == ()
    (none,) = place.find()
    assert none.note == "0 images in 0 near-duplicate groups under elsewhere/ (0 benign, 0 malignant, 0 normal)."
    place.put("elsewhere", {"benign/broken.png": b"no image"})
    (found,) = place.find()
    assert found.images.keys == ()
    assert found.note == (
        "0 images in 0 near-duplicate groups under elsewhere/ (0 benign, 0 malignant, 0 normal); left out: 1 not an image."
    )
