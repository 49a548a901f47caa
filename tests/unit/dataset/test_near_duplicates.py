from __future__ import annotations

import hashlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset import near_duplicates
from bcc_ops.dataset.fingerprints import Fingerprint, fingerprint, to_gray
from bcc_ops.dataset.near_duplicates import (
    NearDuplicates,
    Thresholds,
    compare_sets,
    find_near_duplicates,
    hash_neighbours,
)
from tests.factories.images import scan_pixels

THRESHOLDS = Thresholds.of(RetrainingConfig.resolve({}))


class Forgetful:
    """A memory that knows nothing."""

    def recall_searches(self):
        return []

    def remember_search(self, search):
        pass

    def recall_features(self, sha256):
        return None

    def recall_similarity(self, pairs):
        return {}

    def remember_similarity(self, learned):
        pass


def scan(seed: int, label: str = "benign") -> Image.Image:
    """A synthetic scan, twice as large as it is drawn."""
    drawn = scan_pixels(seed, label)
    return drawn.resize((drawn.width * 2, drawn.height * 2), Image.Resampling.BICUBIC).convert("RGB")


def cropped(image: Image.Image, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0) -> Image.Image:
    width, height = image.size
    return image.crop((int(left * width), int(top * height), int((1 - right) * width), int((1 - bottom) * height)))


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def with_calipers(image: Image.Image) -> Image.Image:
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    for x, y in ((0.3, 0.4), (0.6, 0.5), (0.45, 0.3), (0.45, 0.6)):
        middle = (x * image.width, y * image.height)
        draw.line((middle[0] - 8, middle[1], middle[0] + 8, middle[1]), "white", 2)
        draw.line((middle[0], middle[1] - 8, middle[0], middle[1] + 8), "white", 2)
    draw.text((20, image.height - 40), "LEFT BREAST", "white", font_size=28)
    return marked


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(io.BytesIO(sink.getvalue())).convert("RGB")


def gamma(image: Image.Image, exponent: float) -> Image.Image:
    return image.point([round(255 * (value / 255) ** exponent) for value in range(256)] * 3)


COPIES = {
    "the same pixels in another file": lambda image: image.copy(),
    "saved as JPEG": lambda image: as_jpeg(image, 60),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "another gamma": lambda image: gamma(image, 0.7),
    "calipers and text": with_calipers,
    "scaled by 0.83": lambda image: scaled(image, 0.83),
    "scaled by 1.5": lambda image: scaled(image, 1.5),
    "shifted crop": lambda image: cropped(image, left=0.2, bottom=0.1),
    "crop from the other side": lambda image: cropped(image, right=0.25, top=0.05),
    "scaled crop with calipers": lambda image: with_calipers(scaled(cropped(image, left=0.15, top=0.1), 0.8)),
    "padded with black": lambda image: _padded(image, 60),
}


def _padded(image: Image.Image, by: int) -> Image.Image:
    wide = Image.new("RGB", (image.width + by, image.height), "black")
    wide.paste(image, (by, 0))
    return wide


def test_the_similarity_of_two_images_is_that_of_their_pixels_whatever_files_hold_them(tmp_path):
    """Of two real scans, one order said 0.60 and the other 0.12: their files decided whether they were a group."""
    one = scan(3)
    images = (one, with_calipers(scaled(cropped(one, left=0.15, top=0.1), 0.8)))
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for image, path in zip(images, paths):
        image.save(path)
    marks = [fingerprint(pixels, to_gray(pixels)) for pixels in map(np.asarray, images)]
    told = []
    for names in (("a" * 64, "b" * 64), ("b" * 64, "a" * 64)):
        found = find_near_duplicates(dict(zip(names, marks)), dict(zip(names, paths)), THRESHOLDS, Forgetful())
        told.append([pair.similarity for pair in found.compared])
    assert len(told[0]) == 1 and told[0] == told[1]


def test_of_many_images_with_one_hash_the_pixels_decide_which_are_compared(tmp_path):
    """In the order of their files' digests, other images were neighbours as soon as the files were written otherwise."""
    shown = [f"pixels {number:02}" for number in range(60)]
    Image.new("RGB", (32, 32)).save(path := tmp_path / "any.png")
    no_features = np.zeros((0, 3), np.float32), np.zeros((0, 32), np.uint8)
    compared = []
    for files in ("these", "those"):
        names = {hashlib.sha256(f"{files} {pixels}".encode()).hexdigest(): pixels for pixels in shown}
        marks = {name: Fingerprint.of(pixels, bytes(8), *no_features) for name, pixels in names.items()}
        found = find_near_duplicates(marks, dict.fromkeys(marks, path), THRESHOLDS, Forgetful())
        compared.append({frozenset(names[name] for name in one.pair) for one in found.compared})
    assert compared[0] == compared[1]
    assert len(compared[0]) < 60 * 20


def group(tmp_path, images: dict[str, Image.Image]) -> tuple[NearDuplicates, dict[str, str]]:
    """Find near-duplicates among named images: the outcome, and name -> group."""
    marks, paths, names = {}, {}, {}
    for number, (name, image) in enumerate(images.items()):
        path = tmp_path / f"{number}.png"
        image.save(path, pnginfo=_numbered(number))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        rgb = np.asarray(image.convert("RGB"))
        marks[sha256], paths[sha256], names[name] = fingerprint(rgb, to_gray(rgb)), path, sha256
    found = find_near_duplicates(marks, paths, THRESHOLDS, Forgetful())
    return found, {name: found.group_of[sha256] for name, sha256 in names.items()}


def _numbered(number: int):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("number", str(number))
    return info


@pytest.mark.parametrize("change", COPIES, ids=list(COPIES))
def test_a_near_duplicate_lands_in_its_original_s_group(tmp_path, change):
    images = {f"scan {seed}": scan(seed) for seed in range(6)}
    images["copy"] = COPIES[change](images["scan 3"])
    _, groups = group(tmp_path, images)
    assert groups["copy"] == groups["scan 3"]
    assert len(set(groups.values())) == 6


def test_candidates_that_are_in_one_group_already_are_not_compared(tmp_path, monkeypatch):
    """An archive with many images of each scan has far more candidates than it takes to tie them."""
    images = {
        f"{change} of {seed}": COPIES[change](scan(seed))
        for seed in range(3)
        for change in ("saved as JPEG", "brighter", "another gamma", "scaled by 0.83", "shifted crop")
    }
    whole, expected = group(tmp_path, images)
    monkeypatch.setattr(near_duplicates, "_COMPARED_AT_ONCE", 1)
    found, groups = group(tmp_path, images)
    assert groups == expected and len(set(groups.values())) == 3
    assert sum(one.accepted for one in found.compared) == 15 - 3  # what ties three groups of five, and not one more
    assert set(found.compared) < set(whole.compared)
    assert list(found.compared) == sorted(found.compared, key=lambda one: one.pair)


def test_which_candidates_are_compared_does_not_depend_on_the_bytes_of_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_COMPARED_AT_ONCE", 1)
    shown = [COPIES[change](scan(1)) for change in ("saved as JPEG", "brighter", "another gamma", "scaled by 0.83")]
    paths = [tmp_path / f"{number}.png" for number in range(len(shown))]
    for image, path in zip(shown, paths):
        image.save(path)
    marks = [fingerprint(pixels, to_gray(pixels)) for pixels in map(np.asarray, shown)]
    compared = set()
    for names in itertools.permutations("abcd"):
        found = find_near_duplicates(dict(zip(names, marks)), dict(zip(names, paths)), THRESHOLDS, Forgetful())
        compared.add(frozenset(frozenset(map(names.index, one.pair)) for one in found.compared))
    assert len(compared) == 1 and len(compared.pop()) == 3


def test_how_a_copy_was_found_is_told(tmp_path):
    images = {f"scan {seed}": scan(seed) for seed in range(3)}
    images["same"] = images["scan 0"].copy()
    images["jpeg"] = as_jpeg(images["scan 1"], 70)
    images["crop"] = cropped(images["scan 2"], left=0.25, bottom=0.15)
    found, groups = group(tmp_path, images)
    assert [found.how[groups[name]] for name in ("same", "jpeg", "crop")] == [("pixels",), ("perceptual",), ("shifted",)]


def test_scans_with_the_same_text_and_calipers_are_no_copies(tmp_path):
    images = {f"scan {seed}": with_calipers(scan(seed).resize((480, 400))) for seed in range(10)}
    _, groups = group(tmp_path, images)
    assert len(set(groups.values())) == 10


def test_scans_of_the_same_layout_and_other_speckle_are_no_copies(tmp_path):
    rng = np.random.default_rng(5)
    layout = np.kron(rng.integers(20, 160, (5, 6)), np.ones((80, 80)))
    images = {
        f"scan {number}": Image.fromarray(
            np.clip(layout + 25 * _blurred(rng.standard_normal(layout.shape)), 0, 255).astype(np.uint8)
        )
        for number in range(6)
    }
    found, groups = group(tmp_path, images)
    assert len(set(groups.values())) == 6
    assert any(pair.by_hash and not pair.accepted for pair in found.compared), "the hashes should have been fooled"


def _blurred(noise):
    import cv2

    blurred = cv2.GaussianBlur(noise, (0, 0), 2)
    return blurred / blurred.std()


def test_blank_images_are_no_copies_of_one_another(tmp_path):
    images = {f"blank {value}": Image.new("RGB", (200 + value, 160), (value, value, value)) for value in range(30)}
    _, groups = group(tmp_path, images)
    assert len(set(groups.values())) == 30


def test_images_without_features_are_compared_by_size(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray((_blurred(rng.standard_normal((70, 90))) * 40 + 120).clip(0, 255).astype(np.uint8)).convert("RGB")
    images = {"tiny": smooth, "larger": smooth.resize((100, 78), Image.Resampling.BICUBIC)}
    images |= {f"other {seed}": scan(seed).resize((90, 70)) for seed in range(4)}
    _, groups = group(tmp_path, images)
    assert groups["tiny"] == groups["larger"]
    assert len(set(groups.values())) == 5


def test_the_order_of_the_contents_changes_nothing(tmp_path):
    images = {f"scan {seed}": scan(seed) for seed in range(4)} | {"crop": cropped(scan(1), left=0.2)}
    _, groups = group(tmp_path, images)
    _, backwards = group(tmp_path, dict(reversed(images.items())))

    def partition(of):
        return {frozenset(name for name in of if of[name] == one) for one in of.values()}

    assert partition(groups) == partition(backwards)


@pytest.mark.parametrize("distance", [0, 3, 7, 11])
def test_hash_neighbours_are_those_of_comparing_all_with_all(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 256, (400, 8), dtype=np.uint8)
    for number in range(200, 400):  # near-duplicates of the first half, 0 to 14 bits away
        bits = np.unpackbits(hashes[number - 200])
        bits[rng.choice(64, number % 15, replace=False)] ^= 1
        hashes[number] = np.packbits(bits)
    bits = np.unpackbits(hashes, axis=1).astype(int)
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    expected = [
        (one, other, int(apart[one, other]))
        for one in range(400)
        for other in range(one + 1, 400)
        if apart[one, other] <= distance
    ]
    assert hash_neighbours([row.tobytes() for row in hashes], distance) == expected


def test_thousands_of_equal_hashes_do_not_become_millions_of_pairs():
    pairs = hash_neighbours([bytes(8)] * 5000, 7)
    assert len(pairs) < 5000 * 20
    ends = np.array(pairs)[:, :2]
    assert set(ends.ravel().tolist()) == set(range(5000))  # yet each has a neighbour: a chain holds them together


def hashes_near_one_another(count):
    """Different hashes, each two of which differ in at most 6 bits, as an attacker would choose them."""
    chosen = itertools.chain.from_iterable(itertools.combinations(range(64), bits) for bits in range(4))
    return [sum(1 << bit for bit in bits).to_bytes(8, "big") for bits in itertools.islice(chosen, count)]


@pytest.mark.parametrize("equal", [1, 5, 25])
def test_thousands_of_hashes_that_are_near_one_another_do_not_become_millions_of_pairs(equal):
    pairs = hash_neighbours(hashes_near_one_another(1500 // equal) * equal, 7)
    assert len(pairs) <= 1500 * 140  # of 1.1 million
    assert {end for pair in pairs for end in pair[:2]} == set(range(1500))  # yet nobody is left alone


def test_a_flood_of_near_hashes_takes_no_neighbour_from_images_outside_it():
    flood = hashes_near_one_another(1000)
    alone = [b"\xff" * 8, b"\xff" * 7 + b"\xfe"]
    assert (1000, 1001, 1) in hash_neighbours(flood + alone, 7)


def test_a_flood_keeps_each_hashs_nearest_neighbours():
    pairs = hash_neighbours(hashes_near_one_another(1000), 7)
    # Hash 0 has no bit set: its 64 neighbours at a distance of 1 come before the 935 others.
    assert [pair for pair in pairs if pair[0] == 0 and pair[2] == 1] == [(0, other, 1) for other in range(1, 65)]


def test_no_images_have_no_neighbours():
    assert hash_neighbours([], 7) == []
    found = find_near_duplicates({}, {}, THRESHOLDS, Forgetful())
    assert found.group_of == {}


def test_the_pairs_nearest_the_thresholds_come_first(tmp_path):
    images = {f"scan {seed}": with_calipers(scan(seed).resize((480, 400))) for seed in range(6)} | {"copy": as_jpeg(scan(2), 30)}
    found, _ = group(tmp_path, images)
    margins = [pair.margin for pair in found.nearest(100)]
    assert margins == sorted(margins)
    assert len(found.nearest(1)) == 1


def test_two_sets_are_compared_with_one_another_only(tmp_path):
    """Each has a pair of copies within itself; across them there is one pair, and a file that both have."""
    images = {
        "a": scan(1),
        "a2": as_jpeg(scan(1), 60),
        "b": scan(2),
        "c": as_jpeg(scan(2), 60),
        "c2": as_jpeg(scan(2), 80),
        "d": scan(3),
    }
    marks, paths = {}, {}
    for name, image in images.items():
        paths[name] = tmp_path / f"{name}.png"
        image.save(paths[name])
        rgb = np.asarray(image)
        marks[name] = fingerprint(rgb, to_gray(rgb))
    compared = compare_sets((("a", "a2", "b", "d"), ("c", "c2", "d")), marks, paths, THRESHOLDS, Forgetful())
    assert {one.pair for one in compared if one.accepted} == {("b", "c"), ("b", "c2")}
    assert all((one in {"a", "a2", "b"}) != (other in {"a", "a2", "b"}) for one, other in (pair.pair for pair in compared))
    assert compare_sets((("a", "b"), ()), marks, paths, THRESHOLDS, Forgetful()) == ()


def test_each_of_many_files_with_the_same_pixels_is_compared_with_the_other_set(tmp_path):
    """Compared as so many images, some were passed over, by the digests of their files."""
    original = scan(1)
    original.save(path := tmp_path / "original.png")
    cropped(original, left=0.1).save(other := tmp_path / "other.png")
    mark, near = (fingerprint(rgb := np.array(Image.open(file)), to_gray(rgb)) for file in (path, other))
    copies = [hashlib.sha256(bytes([number])).hexdigest() for number in range(25)]
    marks, paths = dict.fromkeys(copies, mark) | {"near": near}, dict.fromkeys(copies, path) | {"near": other}
    found = compare_sets((copies, ["near"]), marks, paths, THRESHOLDS, Forgetful())
    assert [one.pair for one in found] == sorted((copy, "near") for copy in copies)
    assert len({one.similarity for one in found}) == 1 and found[0].accepted


def test_which_pairs_of_two_sets_are_compared_does_not_depend_on_the_bytes_of_their_files(tmp_path, monkeypatch):
    """Both sets have the same pixels, and so many images have one hash that each is compared with the next ones only."""
    monkeypatch.setattr(near_duplicates, "_ALIKE_AT_MOST", 2)
    Image.new("RGB", (32, 32)).save(path := tmp_path / "any.png")
    no_features = np.zeros((0, 3), np.float32), np.zeros((0, 32), np.uint8)
    compared = []
    for ours, theirs in ("ab", "ba"):
        shown = {ours: "pixels 1", theirs: "pixels 1", "c": "pixels 2"}
        marks = {name: Fingerprint.of(pixels, bytes(8), *no_features) for name, pixels in shown.items()}
        found = compare_sets(((ours, "c"), (theirs,)), marks, dict.fromkeys(marks, path), THRESHOLDS, Forgetful())
        compared.append({frozenset({ours: "ours", theirs: "theirs", "c": "c"}[name] for name in one.pair) for one in found})
    assert compared[0] == compared[1]
