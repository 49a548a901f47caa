"""Synthetic ultrasound images, for when there are none: three classes that a model can learn, and that fool nobody.

Each image is a simulated B-mode scan. Tissue is a map of scatterer strength (skin, fat, gland, muscle); the echo is that
map times fully developed speckle, which is the magnitude of a circular complex Gaussian field blurred by the probe's
point spread (Burckhardt 1978, "Speckle in ultrasound B-mode scans"), then log-compressed. The classes differ in what
radiologists look at, drawn with a coarse brush (BI-RADS' lexicon): a *benign* mass is a smooth ellipse, wider than tall,
brighter below; a *malignant* one is jagged, taller than wide, with a shadow below; a *normal* image has no mass.

A second set of classes is for a deployment with several models: a weave with a flaw (*finding*) or without one (*no_finding*).

No metric reached on them says anything about real images. Each file therefore carries `SYNTHETIC_MARK` as a PNG text
chunk, the image checks count the marked files, and every later document and page says that they are synthetic.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SYNTHETIC_MARK = ("bcc_ops", "synthetic: drawn by the project's own generator, no patient was scanned")
"""Keyword and text of the PNG `tEXt` chunk in every synthetic file."""

SYNTHETIC_CLASSES = ("benign", "malignant", "normal")
"""What the generator draws of breast ultrasound."""

TEXTURE_CLASSES = ("finding", "no_finding")
"""What it draws of weaves."""

_DYNAMIC_RANGE_DB = 50.0
_FloatImage = npt.NDArray[np.float64]


def is_synthetic(info: Mapping[str, Any]) -> bool:
    """Return whether an image says that the project's generator drew it; `info` is Pillow's `image.info`."""
    keyword, text = SYNTHETIC_MARK
    return info.get(keyword) == text


def draw_image(label: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one image.

    Args:
        label: one of `SYNTHETIC_CLASSES` or of `TEXTURE_CLASSES`.
        rng: decides everything about the image, its size included.

    Returns:
        Gray values, uint8, (height, width), 150 to 230 by 190 to 300 pixels.

    Raises:
        ValueError: nothing is known about what such a class looks like.
    """
    if label in TEXTURE_CLASSES:
        return _weave(flawed=label == "finding", rng=rng)
    if label not in SYNTHETIC_CLASSES:
        known = ", ".join((*SYNTHETIC_CLASSES, *TEXTURE_CLASSES))
        raise ValueError(f"synthetic images exist for {known}, not for {label!r}")
    height, width = int(rng.integers(150, 231)), int(rng.integers(190, 301))
    strength = _tissue(height, width, rng)
    if label != "normal":
        strength *= _mass(height, width, malignant=label == "malignant", rng=rng)
    echo = strength * _speckle(height, width, rng)
    decibel = 20 * np.log10(np.maximum(echo, 1e-6) / np.quantile(echo, 0.995))
    return np.asarray(np.clip(1 + decibel / _DYNAMIC_RANGE_DB, 0, 1) * 255, dtype=np.uint8)


def write_images(folder: Path, per_class: int, seed: int = 20261122, classes: Sequence[str] = SYNTHETIC_CLASSES) -> list[Path]:
    """Write one folder per class with `per_class` PNG files each; what is there already under the same name is kept.

    Args:
        folder: where the classes' folders go; made if it is missing.
        per_class: images of each class, at least 1.
        seed: the same seed draws the same images, whatever their number.
        classes: some of `SYNTHETIC_CLASSES` or of `TEXTURE_CLASSES`.

    Returns:
        The files, new and old, sorted within each class.

    Raises:
        ValueError: a class is unknown, or `per_class` is below 1.
    """
    if per_class < 1:
        raise ValueError(f"at least one image per class is needed, not {per_class}")
    files: list[Path] = []
    for label in classes:
        for number in range(per_class):
            path = folder / label / f"synthetic_{label}_{seed}_{number:04d}.png"
            if not path.exists():
                # crc32, not hash(): the latter differs from one process to the next
                rng = np.random.default_rng([seed, zlib.crc32(label.encode()), number])
                _write_png(path, draw_image(label, rng))
            files.append(path)
    return files


def _write_png(path: Path, gray: npt.NDArray[np.uint8]) -> None:
    mark = PngInfo()
    mark.add_text(*SYNTHETIC_MARK)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # a kill half-way leaves no file that looks whole
    Image.fromarray(gray).convert("RGB").save(partial, format="PNG", pnginfo=mark)
    partial.replace(path)


def _weave(*, flawed: bool, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw threads that cross under uneven light; in a flaw, which is a disc, they are torn and the ground shines through."""
    height, width = int(rng.integers(120, 181)), int(rng.integers(120, 181))
    down, right = np.mgrid[0:height, 0:width].astype(float)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(6, 14)
    wobble = 0.8 * _waves(height, width, 18, rng)

    def threads(turn: float) -> _FloatImage:
        across = right * np.cos(angle + turn) + down * np.sin(angle + turn)
        return np.asarray(np.sin(2 * np.pi * across / pitch + wobble + rng.uniform(0, 2 * np.pi)))

    weave = np.maximum(threads(0), threads(np.pi / 2))
    if flawed:
        centre_y, centre_x = rng.uniform(0.3, 0.7) * height, rng.uniform(0.3, 0.7) * width
        radius = np.hypot(down - centre_y, right - centre_x) / (rng.uniform(0.12, 0.22) * min(height, width))
        inside = 1 / (1 + np.exp(np.clip((radius - 1 + 0.15 * _waves(height, width, 8, rng)) / 0.06, -30, 30)))
        weave = weave * (1 - inside) + inside * (2.4 + 0.3 * rng.standard_normal((height, width)))
    light = 100 + 10 * _waves(height, width, 40, rng)
    return np.asarray(np.clip(light + 30 * weave + 8 * rng.standard_normal((height, width)), 0, 255), dtype=np.uint8)


def _smooth(field: npt.NDArray[Any], down: float, across: float) -> npt.NDArray[Any]:
    """Blur by a Gaussian of `down` and `across` pixels (standard deviations), periodic at the edges."""
    frequencies_down = np.fft.fftfreq(field.shape[0])[:, None]
    frequencies_across = np.fft.fftfreq(field.shape[1])[None, :]
    transfer = np.exp(-2 * np.pi**2 * ((frequencies_down * down) ** 2 + (frequencies_across * across) ** 2))
    return np.asarray(np.fft.ifft2(np.fft.fft2(field) * transfer))


def _speckle(height: int, width: int, rng: np.random.Generator) -> _FloatImage:
    """Rayleigh-distributed, finer along the beam than across it, with a mean of 1."""
    scatterers = rng.standard_normal((height, width)) + 1j * rng.standard_normal((height, width))
    envelope = np.abs(_smooth(scatterers, down=0.8, across=rng.uniform(1.2, 1.8)))
    return np.asarray(envelope / envelope.mean())


def _waves(height: int, width: int, scale: float, rng: np.random.Generator) -> _FloatImage:
    """Smooth noise of mean 0 and standard deviation 1, with structures of about `scale` pixels."""
    noise = _smooth(rng.standard_normal((height, width)), scale, 1.6 * scale).real
    return np.asarray((noise - noise.mean()) / noise.std())


def _tissue(height: int, width: int, rng: np.random.Generator) -> _FloatImage:
    """Scatterer strength of a breast without a mass: layers with wavy borders, clumps within them, fading with depth."""
    depth = np.linspace(0, 1, height)[:, None] + 0.035 * _waves(height, width, 22, rng)
    borders = np.cumsum([rng.uniform(0.03, 0.07), rng.uniform(0.12, 0.3), rng.uniform(0.3, 0.45)])
    strengths = (2.2, rng.uniform(0.35, 0.6), rng.uniform(0.8, 1.3), rng.uniform(0.4, 0.8))  # skin, fat, gland, muscle
    layers = np.select([depth < border for border in borders], strengths[:3], strengths[3])
    clumps = np.exp(0.45 * _waves(height, width, rng.uniform(7, 14), rng))
    return np.asarray(layers * clumps * np.exp(-rng.uniform(0.2, 1.0) * np.linspace(0, 1, height))[:, None])


def _mass(height: int, width: int, *, malignant: bool, rng: np.random.Generator) -> _FloatImage:
    """Return what a mass multiplies the scatterer strength with: little inside it, and a shadow or a glow below."""
    across = rng.uniform(0.13, 0.24) * height
    tall = rng.uniform(0.95, 1.35) if malignant else rng.uniform(0.45, 0.75)
    centre_y, centre_x = rng.uniform(0.36, 0.55) * height, rng.uniform(0.3, 0.7) * width
    down, right = np.mgrid[0:height, 0:width].astype(float)
    down, right = (down - centre_y) / (across * tall), (right - centre_x) / across
    angle, radius = np.arctan2(down, right), np.hypot(down, right)
    roughness = rng.uniform(0.06, 0.13) if malignant else rng.uniform(0.0, 0.05)
    outline = np.ones_like(radius)
    for lobes in range(4, 12) if malignant else range(2, 4):
        outline += roughness * rng.standard_normal() * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi)) / np.sqrt(2)
    softness = rng.uniform(0.08, 0.18) if malignant else rng.uniform(0.03, 0.08)
    inside = 1 / (1 + np.exp(np.clip((radius - np.maximum(outline, 0.3)) / softness, -30, 30)))
    below = (1 / (1 + np.exp(np.clip((np.abs(right) - 0.8) / 0.12, -30, 30)))) * (down > 0) * (1 - inside)
    behind = rng.uniform(0.15, 0.4) if malignant else rng.uniform(1.4, 2.2)
    echo_free = rng.uniform(0.1, 0.25) if malignant else rng.uniform(0.06, 0.2)
    return np.asarray((1 - inside * (1 - echo_free)) * (1 + below * (behind - 1)))
