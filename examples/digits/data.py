"""The scans: scikit-learn's bundled 8x8 handwritten digits, split once and for all."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = np.ndarray[Any, np.dtype[Any]]


def split() -> tuple[Array, Array, Array, Array]:
    """Training images, held-out images (float32 ``[n, 1, 8, 8]``, 0 to 1), training labels, held-out labels (int64 ``[n]``)."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    parts = train_test_split(images, digits.target.astype(np.int64), test_size=0.2, random_state=0, stratify=digits.target)
    train_images, held_images, train_labels, held_labels = parts
    return train_images, held_images, train_labels, held_labels


def held_out() -> tuple[Array, Array]:
    """The 360 scans that training never saw, and their labels."""
    _, images, _, labels = split()
    return images, labels
