from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import MPEG4HP41, ExplicitVRLittleEndian, JPEGBaseline8Bit

from bcc_ops.dataset.decoding import decode_image, decode_rgb, read_image_file
from bcc_ops.dataset.dicom import DicomTags, dicom_to_png, keep_of_dicom, tags_of
from bcc_ops.dataset.pseudonyms import Pseudonyms
from bcc_ops.exceptions import ImageRefused
from tests.factories.dicom_files import LOSSLESS, MARKER, dicom_file, palette_file, region
from tests.factories.hostile_dicoms import hostile_dicoms


def speckle(rows: int = 40, columns: int = 48, seed: int = 0) -> np.ndarray:
    """A smooth gray image with a patch of noise."""
    rng = np.random.default_rng(seed)
    gray = (np.add.outer(np.arange(rows) * 2, np.arange(columns)) % 256).astype(np.uint8)
    gray[5:15, 10:30] = rng.integers(0, 256, (10, 20))
    return gray


HOSTILE = list(hostile_dicoms())
GRAY = speckle()
COLOUR = np.dstack([GRAY, np.roll(GRAY, 3), 255 - GRAY])


def shown(content: bytes) -> np.ndarray:
    """The pixels that every later step sees of a file: (rows, columns, 3)."""
    return decode_image(keep_of_dicom(content)).rgb


def tags(content: bytes) -> DicomTags:
    found = decode_image(keep_of_dicom(content)).tags
    assert found is not None
    return found


def in_rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name[:24])
@pytest.mark.parametrize(
    ("photometric", "pixels", "tolerance"),
    # YBR rounds each channel to whole numbers, so that RGB comes back with an error of 1.
    [("MONOCHROME1", GRAY, 0), ("MONOCHROME2", GRAY, 0), ("RGB", COLOUR, 0), ("YBR_FULL", COLOUR, 1)],
)
def test_a_lossless_transfer_syntax_gives_the_same_pixels(syntax, photometric, pixels, tolerance) -> None:
    seen = shown(dicom_file(pixels, syntax, photometric))
    assert np.abs(seen.astype(int) - in_rgb(pixels)).max() <= tolerance


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name[:24])
def test_a_palette_becomes_its_colours(syntax) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (32, 3)).astype(np.uint8)
    assert np.array_equal(shown(palette_file(GRAY // 8, colours, syntax)), colours[GRAY // 8])


@pytest.mark.parametrize(("photometric", "pixels"), [("MONOCHROME2", GRAY), ("YBR_FULL", COLOUR), ("RGB", COLOUR)])
def test_jpeg_stays_near_the_pixels_in_the_right_colours(photometric, pixels) -> None:
    smooth = np.asarray(Image.fromarray(pixels).resize((12, 10)).resize((48, 40)))
    seen = shown(dicom_file(smooth, JPEGBaseline8Bit, photometric))
    assert np.abs(seen.astype(int) - in_rgb(smooth)).mean() < 2


def test_subsampled_colour_is_spread_over_its_pairs_of_pixels() -> None:
    pairs = np.repeat(COLOUR[:, ::2], 2, axis=1)
    seen = shown(dicom_file(pairs, photometric="YBR_FULL_422"))
    assert np.abs(seen.astype(int) - pairs).max() <= 1


@pytest.mark.parametrize(
    ("photometric", "given", "expected"),
    [
        ("MONOCHROME2", {"WindowCenter": 128, "WindowWidth": 256}, [0, 100, 200, 255]),
        ("MONOCHROME2", {"WindowCenter": [100.5, 1], "WindowWidth": [101, 1]}, [0, 128, 255, 255]),
        ("MONOCHROME1", {"WindowCenter": 100.5, "WindowWidth": 101}, [0, 0, 242, 255]),
        ("MONOCHROME2", {"WindowCenter": 100, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}, [0, 128, 255, 255]),
        ("MONOCHROME2", {"WindowCenter": 100, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"}, [5, 128, 250, 254]),
        (
            "MONOCHROME2",
            {"RescaleSlope": 2, "RescaleIntercept": 10, "WindowCenter": 210.5, "WindowWidth": 201},
            [0, 128, 255, 255],
        ),
        ("MONOCHROME2", {"WindowCenter": 100, "WindowWidth": 0}, [0, 100, 200, 255]),
    ],
)
def test_gray_values_are_shown_through_the_window(photometric, given, expected) -> None:
    # Worked: at 100 of a window from 50.5 to 150.5, y = (100 - (100.5 - 0.5)) / 100 + 0.5 = 0.5, of 255: 127.5, rounded to even.
    stored = np.tile(np.array([0, 100, 200, 255], np.uint8), (4, 1))
    assert shown(dicom_file(stored, photometric=photometric, **given))[0, :, 0].tolist() == expected


def test_sixteen_bits_are_scaled_by_the_bits_that_are_stored() -> None:
    twelve = np.tile(np.array([0, 819, 4095, 4095 + (3 << 12)], np.uint16), (4, 1))  # the last with an overlay above its bits
    assert shown(dicom_file(twelve, BitsStored=12, HighBit=11))[0, :, 0].tolist() == [0, 51, 255, 255]
    signed = np.tile(np.array([-2048, 0, 2047], np.int16).view(np.uint16), (4, 1))
    tagged = dicom_file(signed, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert shown(tagged)[0, :, 0].tolist() == [0, 128, 255]


def test_a_table_of_values_of_interest_is_looked_up() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [3, 10, 8], bytes((0, 100, 255, 0))
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    stored = np.tile(np.array([5, 10, 11, 12, 200], np.uint8), (4, 1))
    assert shown(dicom_file(stored, VOILUTSequence=Sequence([table])))[0, :, 0].tolist() == [0, 0, 100, 255, 255]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name[:24])
def test_the_middle_one_of_several_frames_is_used(syntax) -> None:
    frames = np.stack([speckle(seed=number) for number in range(5)])
    content = dicom_file(frames, syntax, frames=5)
    assert np.array_equal(shown(content), in_rgb(frames[2]))
    assert (tags(content).frame, tags(content).frames) == (2, 5)


def test_the_representative_frame_is_used_if_the_file_names_one() -> None:
    frames = np.stack([speckle(seed=number) for number in range(5)])
    assert np.array_equal(shown(dicom_file(frames, frames=5, RepresentativeFrameNumber=5)), in_rgb(frames[4]))
    assert np.array_equal(shown(dicom_file(frames, frames=5, RepresentativeFrameNumber=6)), in_rgb(frames[2]))


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


@pytest.mark.parametrize(("content", "reason"), [pytest.param(content, reason, id=name) for name, content, reason in HOSTILE])
def test_a_hostile_file_is_refused_with_one_reason_that_quotes_nothing_of_it(content, reason) -> None:
    with pytest.raises(ImageRefused) as refusal:
        dicom_to_png(content)
    assert refusal.value.reason == reason
    assert MARKER not in refusal.value.detail and "<" not in refusal.value.detail and "\n" not in refusal.value.detail


def test_a_transfer_syntax_that_cannot_be_decoded_is_refused_by_its_name() -> None:
    content = dicom_file(GRAY).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.102"[:20])
    with pytest.raises(ImageRefused, match="transfer syntax"):
        dicom_to_png(content)
    name = MPEG4HP41.name
    with pytest.raises(ImageRefused, match=name.split(" /")[0]):
        dicom_to_png(next(content for name, content, _ in HOSTILE if name == "video.dcm"))


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


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"age": "x"}', '{"name": "y"}', json.dumps({"device": "x" * 65}), '{"age": 1e400}']
)
def test_forged_tags_in_a_png_are_no_tags(text) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bcc-dicom", text)
    file = io.BytesIO()
    Image.fromarray(GRAY).save(file, "PNG", pnginfo=info)
    assert tags_of(Image.open(io.BytesIO(file.getvalue())).info) is None


def test_a_dicom_file_is_read_wherever_an_image_file_is(tmp_path) -> None:
    path = tmp_path / "IM0001"
    path.write_bytes(dicom_file(COLOUR))
    assert np.array_equal(decode_rgb(path), COLOUR)
    assert np.array_equal(decode_rgb(path.read_bytes()), COLOUR)
    assert read_image_file(path) == keep_of_dicom(path.read_bytes())
    assert decode_image(read_image_file(path)).file_format == "DICOM"


def test_deflated_files_are_decoded_by_several_threads() -> None:
    content = dicom_file(GRAY, LOSSLESS[3])
    seen: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: seen.append(shown(content))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4 and all(np.array_equal(one, in_rgb(GRAY)) for one in seen)


def test_extra_bytes_after_the_pixels_are_let_be() -> None:
    assert np.array_equal(shown(dicom_file(GRAY, ExplicitVRLittleEndian, DataSetTrailingPadding=bytes(64))), in_rgb(GRAY))
