"""The built-in data: the handwritten digits that scikit-learn ships, kept as small JPEG files."""

from __future__ import annotations

import io
from collections import defaultdict

import numpy as np
from PIL import Image

from seatrial.data.draw import ranked
from seatrial.data.image_set import Entry, ImageSet, MemoryContent

SIDE_PX = 32
JPEG_QUALITY = 95
TEST_SAMPLES = 600
_SPLIT_SEED = 0


def digits_split() -> tuple[ImageSet, ImageSet]:
    """Return (train, test): 1,197 and 600 of the 1,797 digits, in the same shares of classes, always the same.

    Each is the 8x8 picture of 17 gray levels of the UCI Optical Recognition of Handwritten Digits data (Alpaydin and
    Kaynak, 1998; scikit-learn's `load_digits`), enlarged to 32 pixels (cubic), written as an RGB JPEG of quality 95
    so that a noise of decoding or resizing has something to act on. Ids are `digits/0000` to `digits/1796`.
    """
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pictures = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    entries = [
        Entry(f"digits/{index:04d}", int(label), MemoryContent(_jpeg(picture)))
        for index, (picture, label) in enumerate(zip(pictures, labels))
    ]
    test = _stratified([entry.id for entry in entries], [entry.label for entry in entries], TEST_SAMPLES)
    names = tuple(str(digit) for digit in range(10))
    whole = ImageSet("digits", tuple(entries), names, "integers")
    return whole.subset(set(range(len(entries))) - test), whole.subset(test)


def _jpeg(picture: np.ndarray) -> bytes:
    large = Image.fromarray(picture).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).convert("RGB")
    written = io.BytesIO()
    large.save(written, "JPEG", quality=JPEG_QUALITY)
    return written.getvalue()


def _stratified(ids: list[str], labels: list[int], n: int) -> set[int]:
    """Return `n` positions, of each class its share of the whole, rounded by largest remainders."""
    members: dict[int, list[int]] = defaultdict(list)
    for index in ranked(ids, _SPLIT_SEED, "digits-test"):
        members[labels[index]].append(index)
    shares = {label: len(chosen) * n / len(ids) for label, chosen in members.items()}
    counts = {label: int(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (counts[label] - shares[label], label))
    for label in by_remainder[: n - sum(counts.values())]:
        counts[label] += 1
    return {index for label, chosen in members.items() for index in chosen[: counts[label]]}
