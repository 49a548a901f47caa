"""The rows of a run's tables. They need neither NumPy nor PyArrow: the triggerer lists images without them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class ImageRow(NamedTuple):
    """images.parquet: an image of the snapshot. `version_id` is "" on a bucket without versions."""

    key: str
    label: str
    size: int
    etag: str
    version_id: str
    last_modified: datetime


class ContentRow(NamedTuple):
    """contents.parquet: what the checks saw of an image. `refused` is "" for a usable one, else the reason.

    `width` and `height` in pixels (0 if the header cannot be read), `mean` and `contrast` (standard deviation) of the gray
    values, 0 to 255 (0 if refused). `pixels` is the sha256 of the decoded pixels ("" if refused): it survives lossless
    re-encoding and the removal of metadata, which change `sha256`, that of the file's bytes. What follows `pixels` is
    described in `dataset.properties.Properties`; `file_format` is "" if it was not measured (refused, or an older release).
    `patient` is the pseudonym of the patient in the metadata, "" if it does not tell; several, with a space between, if it
    contradicts itself.
    `findings` tells how the content was looked at, then the findings' names, separated by spaces; "" if nobody has looked.
    `perceptual_hash`, 64 bits in hex ("" if refused, or from an older release), hardly changes when pixels are rounded.
    """

    key: str
    label: str
    sha256: str
    width: int
    height: int
    mode: str
    mean: float
    contrast: float
    synthetic: bool
    group: str
    refused: str
    pixels: str = ""
    file_format: str = ""
    file_bytes: int = 0
    quantization: float = 0.0
    border_left: float = 0.0
    border_right: float = 0.0
    border_top: float = 0.0
    border_bottom: float = 0.0
    rim_left: float = 0.0
    rim_right: float = 0.0
    rim_top: float = 0.0
    rim_bottom: float = 0.0
    corners_top: float = 0.0
    corners_bottom: float = 0.0
    coloured: float = 0.0
    saturation: float = 0.0
    strokes: float = 0.0
    patient: str = ""
    findings: str = ""
    perceptual_hash: str = ""


class SplitRow(NamedTuple):
    """split.parquet: an image in a fold, which this run uses. `sha256` and `pixels` as in `ContentRow`.

    No model of the run is trained on an image that is not `trained_on`; the model of its fold is asked about it.
    """

    key: str
    sha256: str
    label: str
    group: str
    fold: int
    pixels: str = ""
    trained_on: bool = True


class AssignmentRow(NamedTuple):
    """assignments.parquet: an image that has a fold for good, whether or not this run uses it.

    `key` and `group` are those of the last run that saw the image. `decisions` counts the gate decisions that it was held out
    for. `patient` is as in `ContentRow`, as the metadata last told it.
    """

    key: str
    sha256: str
    pixels: str
    label: str
    group: str
    fold: int
    decisions: int
    patient: str = ""


class MetadataRow(NamedTuple):
    """metadata.parquet: what is known of an image in one column. `patient_id` holds pseudonyms, never identifiers."""

    key: str
    column: str
    value: str
