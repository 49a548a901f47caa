"""From the pixel data of a DICOM file to pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import MPEG4HP41, ExplicitVRLittleEndian, JPEGBaseline8Bit

from bcc_ops.dataset import dicom_pixels
from bcc_ops.dataset.dicom import dicom_to_png
from bcc_ops.exceptions import ImageRefused
from tests.factories.dicom_files import (
    COLOUR,
    GRAY,
    LOSSLESS,
    dicom_file,
    in_rgb,
    palette_file,
    shown,
    speckle,
    tags,
)
from tests.factories.hostile_dicoms import hostile_dicoms


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


def test_a_transfer_syntax_that_cannot_be_decoded_is_refused_by_its_name() -> None:
    content = dicom_file(GRAY).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.102"[:20])
    with pytest.raises(ImageRefused, match="transfer syntax"):
        dicom_to_png(content)
    name = MPEG4HP41.name
    with pytest.raises(ImageRefused, match=name.split(" /")[0]):
        dicom_to_png(next(content for name, content, _ in hostile_dicoms() if name == "video.dcm"))


def test_extra_bytes_after_the_pixels_are_let_be() -> None:
    assert np.array_equal(shown(dicom_file(GRAY, ExplicitVRLittleEndian, DataSetTrailingPadding=bytes(64))), in_rgb(GRAY))


@pytest.mark.parametrize(("table", "kind"), [(b"abc", "<u4"), (b"abcdefghijkl", "<u8")])
def test_a_table_of_frames_that_is_cut_off_is_refused(table: bytes, kind: str) -> None:
    with pytest.raises(ImageRefused, match="damaged: its table of frames is cut off"):
        dicom_pixels._offsets(table, kind)
