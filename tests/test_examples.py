"""The examples do what they say; ONNX Runtime and brute force are the oracles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tensorsmith as ts
from benchmarks.engines import random_feeds
from examples import face_detection
from examples.digits.data import held_out
from examples.digits.run import MODEL, REQUIRED_ACCURACY, TOLERANCE, contact_sheet, difference
from examples.models import mobilenet_v2

ROOT = Path(__file__).parent.parent
REAL_MODELS = Path(os.environ.get("TENSORSMITH_MODELS", ROOT.parent / "shared" / "models")) / "real"
FACE_MODEL = REAL_MODELS / "face_slim_320.onnx"


def test_committed_digit_network_is_small_and_has_its_branches() -> None:
    assert MODEL.stat().st_size < 300 << 10
    counts = Counter(node.op_type for node in onnx.load(MODEL).graph.node)
    assert counts["BatchNormalization"] > counts["Conv"] > 2 * counts["Relu"]


def test_digit_network_reads_the_held_out_scans_as_onnxruntime_does() -> None:
    images, labels = held_out()
    expected = onnxruntime.InferenceSession(str(MODEL)).run(None, {"image": images})[0]
    assert (expected.argmax(1) == labels).mean() >= 0.98
    logits = ts.compile(MODEL, threads=1, input_shapes={"image": images.shape}, cache=False).run({"image": images})["logits"]
    assert difference(logits, expected) <= TOLERANCE
    assert (logits.argmax(1) == labels).mean() >= REQUIRED_ACCURACY


def test_mobilenet_v2_has_the_published_number_of_parameters() -> None:
    model = mobilenet_v2()
    statistics = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]}
    limits = {name for node in model.graph.node if node.op_type == "Clip" for name in node.input[1:]}
    learned = [tensor for tensor in model.graph.initializer if tensor.name not in statistics | limits]
    assert sum(int(np.prod(tensor.dims)) for tensor in learned) == 3_504_872


def test_mobilenet_v2_is_seeded_and_keeps_its_activations_in_range() -> None:
    model = mobilenet_v2(size=32)
    assert model.SerializeToString() == mobilenet_v2(size=32).SerializeToString()
    assert model.SerializeToString() != mobilenet_v2(size=32, seed=1).SerializeToString()
    logits = onnxruntime.InferenceSession(model.SerializeToString()).run(None, random_feeds(model))[0]
    assert 0.1 < logits.std() < 10


def test_contact_sheet_shows_misread_digits_first_and_in_red() -> None:
    images, labels = held_out()
    read = labels.copy()
    read[100] = (labels[100] + 1) % 10
    sheet = np.asarray(contact_sheet(images, read, labels)).astype(int)
    red = (sheet[..., 0] > sheet[..., 1] + 64).nonzero()
    assert red[0].size
    assert red[0].max() < 80
    assert red[1].max() < 64


def test_demo_succeeds_and_draws_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    command = [sys.executable, "-m", "examples.digits.run", "--picture", str(picture), "--repeats", "5"]
    environment = {**os.environ, "TENSORSMITH_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    for expected in ("accuracy", "compile time", "latency", "difference", "1 thread", "2 threads", "onnxruntime"):
        assert expected in done.stdout
    assert Image.open(picture).width > 500


boxes_of_corners = st.lists(st.tuples(*[st.integers(0, 20)] * 4), min_size=1, max_size=12).map(
    lambda corners: np.array([[min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1] for a, b, c, d in corners], np.float32)
)


@given(boxes_of_corners)
@settings(deadline=None)
def test_intersection_over_union_counts_pixels(boxes: np.ndarray) -> None:
    masks = np.zeros((len(boxes), 22, 22), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    expected = [(masks[0] & mask).sum() / (masks[0] | mask).sum() for mask in masks]
    np.testing.assert_allclose(face_detection.intersection_over_union(boxes[0], boxes), expected, rtol=1e-5)


@given(boxes_of_corners, st.floats(0, 0.9), st.integers(0, 1000))
@settings(deadline=None)
def test_suppression_keeps_boxes_apart_and_drops_only_what_a_better_one_covers(boxes: np.ndarray, overlap: float, seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(len(boxes)).astype(np.float32)
    kept = face_detection.suppress(boxes, scores, overlap)
    assert scores[kept].tolist() == sorted(scores[kept], reverse=True)
    for index in range(len(boxes)):
        better = [k for k in kept if scores[k] > scores[index]]
        covered = bool(better) and face_detection.intersection_over_union(boxes[index], boxes[better]).max() > overlap
        assert (index in kept) is not covered


class RuntimeModule:
    """ONNX Runtime behind the part of a Module's interface that the example uses."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # the model lists its weights as inputs too, each of which is a warning
        self._session = onnxruntime.InferenceSession(str(path), options)
        self.inputs = self._session.get_inputs()

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip((o.name for o in self._session.get_outputs()), self._session.run(None, feeds), strict=True))


@pytest.mark.skipif(not FACE_MODEL.exists(), reason=f"no face detector in {REAL_MODELS}; set TENSORSMITH_MODELS")
@pytest.mark.parametrize("photo", ["17.jpg", "25.jpg"])
def test_faces_are_where_onnxruntime_finds_them(photo: str) -> None:
    image = Image.open(REAL_MODELS / photo).convert("RGB")
    faces = face_detection.detect(ts.compile(FACE_MODEL, threads=1, cache=False), image)
    expected = face_detection.detect(RuntimeModule(FACE_MODEL), image)
    assert len(faces) == len(expected) > 0
    for (score, box), (expected_score, expected_box) in zip(*(sorted(found, key=lambda face: face[1]) for found in (faces, expected)), strict=True):
        assert score == pytest.approx(expected_score, abs=1e-4)
        np.testing.assert_allclose(box, expected_box, atol=0.5)
