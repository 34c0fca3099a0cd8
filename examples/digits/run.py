"""The demo: compile the digit network and read the held-out scans, then compile and time full-size MobileNetV2.

From the checkout: ``python -m examples.digits.run [--picture digits.png]``, or ``make demo``, which sets everything up first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from PIL import Image, ImageDraw

import tensorsmith as ts
from benchmarks.engines import installed_engines, measure, random_feeds, repeat
from examples.digits.data import held_out
from examples.models import mobilenet_v2

Array = np.ndarray[Any, np.dtype[Any]]

MODEL = Path(__file__).with_name("digits.onnx")
REQUIRED_ACCURACY = 0.97
TOLERANCE = 5e-5
"""Largest accepted difference from the reference, relative to the largest output."""

_COLUMNS, _ROWS, _CELL, _CAPTION = 12, 4, 64, 16


def classify(module: ts.Module, images: Array) -> Array:
    """The digit read in each float32 ``[1, 8, 8]`` image, int64 ``[n]``."""
    return np.array([module.run({"image": image[None]})["logits"].argmax() for image in images])


def contact_sheet(images: Array, read: Array, labels: Array) -> Image.Image:
    """Scans with what was read below each: misread ones first, in red, with their true digit."""
    order = np.argsort(read == labels, kind="stable")[: _COLUMNS * _ROWS]
    sheet = Image.new("RGB", (_COLUMNS * _CELL, _ROWS * (_CELL + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(order):
        x, y = place % _COLUMNS * _CELL, place // _COLUMNS * (_CELL + _CAPTION)
        scan = Image.fromarray((255 * (1 - images[index, 0])).astype(np.uint8))
        sheet.paste(scan.resize((_CELL - 4, _CELL - 4), Image.Resampling.NEAREST), (x + 2, y + 2))
        right = read[index] == labels[index]
        caption = str(read[index]) if right else f"{read[index]}, is {labels[index]}"
        draw.text((x + _CELL // 2, y + _CELL), caption, fill="black" if right else "red", anchor="ma")
    return sheet


def read_digits(picture: Path) -> bool:
    """Compile the digit network, classify, print, draw. Whether the accuracy is as required."""
    images, labels = held_out()
    start = time.perf_counter()
    module = ts.compile(MODEL, threads=1, input_shapes={"image": (1, 1, 8, 8)}, cache=False)
    compile_ms = (time.perf_counter() - start) * 1e3
    read = classify(module, images)
    accuracy = float((read == labels).mean())
    latency_us = min(repeat(lambda: module.run({"image": images[:1]}), 0.5)) * 1e6
    contact_sheet(images, read, labels).save(picture)
    print("Handwritten digits (a MobileOne-style network, trained on real scans)")
    print(f"  accuracy      {accuracy:.2%} of {len(labels)} held-out scans (at least {REQUIRED_ACCURACY:.0%} is required)")
    print(f"  compile time  {compile_ms:.0f} ms")
    print(f"  latency       {latency_us:.0f} µs a scan")
    print(f"  picture       {picture.resolve()}")
    return accuracy >= REQUIRED_ACCURACY


def difference(result: Array, expected: Array) -> float:
    """The largest absolute difference, relative to the largest expected value."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def time_mobilenet(repeats: int) -> bool:
    """Compile MobileNetV2, compare with the references, time the engines there are. Whether the results agree."""
    model = mobilenet_v2()
    feeds = random_feeds(model)
    start = time.perf_counter()
    module = ts.compile(model, cache=False)
    compile_s = time.perf_counter() - start
    result = module.run(feeds)["logits"]
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    differences = {"the ONNX reference": difference(result, np.asarray(expected))}
    engines = installed_engines()
    if "onnxruntime" in engines:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        differences["onnxruntime"] = difference(result, session.run(None, feeds)[0])
    print("MobileNetV2 1.0, 224 x 224 (seeded weights)")
    for reference, value in differences.items():
        print(f"  difference    {value:.1e} of the output's scale from {reference} (at most {TOLERANCE:.0e} is accepted)")
    print(f"  compile time  {compile_s:.2f} s, nothing cached")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mobilenet_v2.onnx"
        onnx.save(model, path)
        for threads in (1, 2):
            times = {engine: measure(engine, path, feeds, threads=threads, repeats=repeats).min_ms for engine in engines}
            print(f"  {threads} thread{'s' if threads > 1 else ' '}     " + ", ".join(f"{engine} {ms:.2f} ms" for engine, ms in times.items()))
    if "onnxruntime" not in engines:
        print("  install onnxruntime to see its latency beside ours")
    return max(differences.values()) <= TOLERANCE


def main() -> None:
    """Run both parts; exit with status 1 where either misses its mark."""
    parser = argparse.ArgumentParser(description="Read handwritten digits and time MobileNetV2 with Tensorsmith.")
    parser.add_argument("--picture", type=Path, default=Path("digits.png"), help="where to write the digits and what was read")
    parser.add_argument("--repeats", type=int, default=200, help="MobileNetV2 inferences timed for each engine and thread count")
    options = parser.parse_args()
    passed = [read_digits(options.picture), time_mobilenet(options.repeats)]
    raise SystemExit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
