from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from bcc_ops.dataset.decoding import decode_image, decode_rgb, read_image_file
from bcc_ops.dataset.dicom import DicomTags, dicom_to_png, keep_of_dicom, tags_of
from bcc_ops.dataset.pseudonyms import Pseudonyms
from bcc_ops.exceptions import ImageRefused
from tests.factories.dicom_files import (
    COLOUR,
    GRAY,
    MARKER,
    dicom_file,
    in_rgb,
    region,
    shown,
    tags,
)


def test_the_image_is_cut_out_of_the_screen_and_its_spacing_known() -> None:
    screen = np.zeros((80, 100), np.uint8)
    screen[20:60, 30:78] = GRAY
    screen[0:5] = 200  # a patient's name
    regions = Sequence([region(30, 20, 77, 59), region(0, 70, 99, 79, kind=3, delta=1.0)])
    content = dicom_file(screen, SequenceOfUltrasoundRegions=regions)
    assert np.array_equal(shown(content), in_rgb(GRAY))
    assert (tags(content).cropped, tags(content).spacing_mm) == (True, 0.2)


def test_two_views_are_cut_out_together() -> None:
    regions = Sequence([region(0, 10, 15, 39, delta=0.02), region(30, 5, 47, 35, delta=0.03)])
    content = dicom_file(GRAY, SequenceOfUltrasoundRegions=regions)
    assert np.array_equal(shown(content), in_rgb(GRAY[5:40, 0:48]))
    assert tags(content).spacing_mm is None


@pytest.mark.parametrize("box", [(0, 0, 48, 39), (10, 10, 10, 20), (20, 5, 3, 9), (0, 0, 47, 39)])
def test_regions_that_are_not_within_the_image_or_are_all_of_it_cut_nothing(box) -> None:
    content = dicom_file(GRAY, SequenceOfUltrasoundRegions=Sequence([region(*box)]))
    assert shown(content).shape == (40, 48, 3)
    assert not tags(content).cropped


def test_the_allowed_tags_are_kept() -> None:
    content = dicom_file(GRAY, AcquisitionDate="20250102", ImageLaterality="R")
    assert tags(content) == DicomTags(
        device="GE LOGIQ E9", acquired_at="2025-01-02", laterality="right", age=52, burned_in=True, photometric="MONOCHROME2"
    )


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"PatientAge": "107Y"}, "age", 90),
        ({"PatientAge": "018M"}, "age", 1),
        ({"StudyDate": ""}, "acquired_at", ""),
        ({"Laterality": ""}, "laterality", ""),
        ({"BurnedInAnnotation": "NO"}, "burned_in", False),
        ({"Manufacturer": "M" * 64, "ManufacturerModelName": "m" * 64}, "device", "M" * 64),
    ],
)
def test_odd_tags_become_plain_ones(given, name, expected) -> None:
    assert getattr(tags(dicom_file(GRAY, **given)), name) == expected


def test_nothing_but_the_allowed_tags_is_kept() -> None:
    assert dicom_file(GRAY).count(MARKER.encode()) >= 8
    kept = keep_of_dicom(dicom_file(GRAY))
    assert MARKER.encode() not in kept and b"1.2.3.4.5" not in kept and b"1970" not in kept and b"120102" not in kept


def test_of_the_patient_only_the_pseudonym_is_kept() -> None:
    names = Pseudonyms(b"a salt of some length")
    kept = keep_of_dicom(dicom_file(GRAY), lambda: names)
    found = decode_image(kept).tags
    assert (found.patient, found.salt) == (names.of(MARKER.lower()), names.salt_name)
    assert MARKER.encode() not in kept
    assert decode_image(keep_of_dicom(dicom_file(GRAY, PatientID="ANONYMOUS"), lambda: names)).tags.patient == ""


def test_the_same_file_gives_the_same_bytes() -> None:
    assert keep_of_dicom(dicom_file(COLOUR)) == keep_of_dicom(dicom_file(COLOUR))


def test_a_refusal_is_kept_and_told_again() -> None:
    content = dicom_file(GRAY)[:-100]
    with pytest.raises(ImageRefused) as first:
        dicom_to_png(content)
    with pytest.raises(ImageRefused) as again:
        decode_image(keep_of_dicom(content))
    assert (again.value.reason, again.value.detail) == (first.value.reason, first.value.detail)


@pytest.mark.parametrize("forged", [b"BCC-REFUSED-DICOM\n", b'BCC-REFUSED-DICOM\n["approved", "x"]', b"BCC-REFUSED-DICOM\n[1]"])
def test_a_forged_refusal_is_not_an_image(forged) -> None:
    with pytest.raises(ImageRefused) as refusal:
        decode_image(forged)
    assert refusal.value.reason == "not an image"


NAMES_A_PATIENT = [
    json.dumps({"photometric": "MONOCHROME2", **told})
    for told in (
        {"laterality": "Jane Doe"},
        {"patient": "Jane Doe", "salt": "0123abcd"},
        {"device": "a\nERROR: Jane Doe"},
        {"acquired_at": "Jane Doe"},
        {"photometric": "Jane Doe"},
    )
]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"age": "x"}', '{"name": "y"}', json.dumps({"device": "x" * 65}), '{"age": 1e400}', *NAMES_A_PATIENT],
)
def test_forged_tags_in_a_png_are_no_tags(text) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bcc-dicom", text)
    file = io.BytesIO()
    Image.fromarray(GRAY).save(file, "PNG", pnginfo=info)
    assert tags_of(dict(cast(Any, Image.open(io.BytesIO(file.getvalue())).info))) is None


def test_a_dicom_file_is_read_wherever_an_image_file_is(tmp_path) -> None:
    path = tmp_path / "IM0001"
    path.write_bytes(dicom_file(COLOUR))
    assert np.array_equal(decode_rgb(path), COLOUR)
    assert np.array_equal(decode_rgb(path.read_bytes()), COLOUR)
    assert read_image_file(path) == keep_of_dicom(path.read_bytes())
    assert decode_image(read_image_file(path)).file_format == "DICOM"


def test_a_refusal_of_any_length_is_not_taken_from_an_uploader() -> None:
    with pytest.raises(ImageRefused) as caught:
        decode_image(b"BCC-REFUSED-DICOM\n" + json.dumps(["damaged", "x" * 5_000_000]).encode())
    assert len(caught.value.detail) < 100


def test_a_failure_that_nobody_thought_of_refuses_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("buffer size must be a multiple of element size")

    monkeypatch.setattr("bcc_ops.dataset.dicom.dicom_to_png", fail)
    with pytest.raises(ImageRefused, match="damaged: the decoder failed: ValueError"):
        decode_image(keep_of_dicom(b""))


def test_the_first_files_of_a_process_are_read_when_threads_read_them_together(tmp_path) -> None:
    (tmp_path / "0.dcm").write_bytes(dicom_file(GRAY))
    (tmp_path / "1.dcm").write_bytes(dicom_file(GRAY).replace(ExplicitVRLittleEndian.encode(), b"1.2.840.10008.1.2.9"))
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from bcc_ops.dataset.dicom import keep_of_dicom
sys.setswitchinterval(1e-4)  # the threads meet in the middle of an import
files, together = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())], Barrier(8)
with ThreadPoolExecutor(8) as pool:
    kept = [*pool.map(lambda i: together.wait() >= 0 and keep_of_dicom(files[i % 2]), range(8))]
assert all(b"PNG" in content for content in kept[::2]), kept
assert all(b"unsupported format" in content for content in kept[1::2]), kept
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
