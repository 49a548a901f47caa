"""The elements of a DICOM file, taken apart within limits."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bcc_ops.dataset.dicom import dicom_to_png
from bcc_ops.exceptions import ImageRefused
from tests.factories.dicom_files import (
    GRAY,
    LOSSLESS,
    MARKER,
    dicom_file,
    in_rgb,
    shown,
)
from tests.factories.hostile_dicoms import hostile_dicoms

HOSTILE = list(hostile_dicoms())


@pytest.mark.parametrize(("content", "reason"), [pytest.param(content, reason, id=name) for name, content, reason in HOSTILE])
def test_a_hostile_file_is_refused_with_one_reason_that_quotes_nothing_of_it(content, reason) -> None:
    with pytest.raises(ImageRefused) as refusal:
        dicom_to_png(content)
    assert refusal.value.reason == reason
    assert MARKER not in refusal.value.detail and "<" not in refusal.value.detail and "\n" not in refusal.value.detail


def test_deflated_files_are_decoded_by_several_threads() -> None:
    content = dicom_file(GRAY, LOSSLESS[3])
    seen: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: seen.append(shown(content))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4 and all(np.array_equal(one, in_rgb(GRAY)) for one in seen)
