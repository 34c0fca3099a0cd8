"""Find faces in a photo with an SSD-style detector and draw their boxes.

    python -m examples.face_detection MODEL.onnx PHOTO OUTPUT.png [--score 0.7] [--overlap 0.3]

The model reads one RGB image, ``(x - 127) / 128`` in NCHW, and gives ``scores`` ``[1, n, 2]`` (background, face) and ``boxes``
``[1, n, 4]`` (left, top, right, bottom, relative to the image), as the "Ultra-Light-Fast-Generic-Face-Detector" networks do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import tensorsmith as ts

Array = np.ndarray[Any, np.dtype[Any]]


def preprocess(photo: Image.Image, width: int, height: int) -> Array:
    """The photo as the network reads it: float32 ``[1, 3, height, width]``."""
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])


def intersection_over_union(box: Array, boxes: Array) -> Array:
    """Overlap of one box ``[4]`` with each of ``[n, 4]``, 0 to 1."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + areas - shared
    return np.asarray(shared / np.maximum(union, 1e-12))


def suppress(boxes: Array, scores: Array, overlap: float) -> list[int]:
    """Greedy non-maximum suppression: indices of the kept boxes, best first."""
    kept: list[int] = []
    order = np.argsort(-scores, kind="stable")
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[intersection_over_union(boxes[best], boxes[rest]) <= overlap]
    return kept


def detect(module: ts.Module, photo: Image.Image, *, score: float = 0.7, overlap: float = 0.3) -> list[tuple[float, tuple[float, ...]]]:
    """Faces as (score, (left, top, right, bottom) in pixels of the photo), best first."""
    (image,) = module.inputs
    height, width = image.shape[2:]
    outputs = module.run({image.name: preprocess(photo, int(width), int(height))})
    scores, boxes = outputs["scores"][0, :, 1], outputs["boxes"][0]
    likely = scores > score
    scores, boxes = scores[likely], boxes[likely] * np.array([photo.width, photo.height] * 2)
    return [(float(scores[i]), tuple(boxes[i].tolist())) for i in suppress(boxes, scores, overlap)]


def main() -> None:
    """Detect, print the boxes, write the picture."""
    parser = argparse.ArgumentParser(description="Find faces in a photo and draw their boxes.")
    parser.add_argument("model", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--score", type=float, default=0.7, help="least score of a face")
    parser.add_argument("--overlap", type=float, default=0.3, help="largest intersection over union of two faces")
    options = parser.parse_args()
    photo = Image.open(options.photo).convert("RGB")
    faces = detect(ts.compile(options.model), photo, score=options.score, overlap=options.overlap)
    draw = ImageDraw.Draw(photo)
    for confidence, box in faces:
        draw.rectangle(box, outline="red", width=max(2, photo.width // 300))
        draw.text((box[0], box[1]), f"{confidence:.2f}", fill="red", anchor="lb")
        print(f"face {confidence:.3f} at " + ", ".join(f"{edge:.0f}" for edge in box))
    photo.save(options.output)
    print(f"{len(faces)} faces drawn in {options.output}")


if __name__ == "__main__":
    main()
