"""A trained voice activity detector over a minute of speech, its state going from window to window."""

from __future__ import annotations

import wave

import numpy as np
import onnx
import pytest
from zoo_models import FOLDER, needs_zoo, session

import tensorsmith as ts

WINDOW, CONTEXT = 512, 64
"""Samples at 16 kHz: of one step, and of the step before that go in front of them."""


def windows() -> list[np.ndarray]:
    with wave.open(str(FOLDER / "real" / "speech.wav")) as file:
        speech = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), speech])
    return [padded[start : start + CONTEXT + WINDOW][None] for start in range(0, len(speech) - WINDOW + 1, WINDOW)]


@needs_zoo
@pytest.mark.parametrize("bound", [False, True])
def test_speech_window_by_window(bound: bool) -> None:
    model = onnx.load(FOLDER / "real" / "silero_vad_16k.onnx")
    shapes = {"input": (1, CONTEXT + WINDOW), "state": (2, 1, 128), "sr": ()} if bound else None
    module, reference = ts.compile(model, threads=1, cache=False, input_shapes=shapes), session(model)
    rate = np.array(16000, np.int64)
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    worst, heard = 0.0, []
    for window in windows():
        found = module.run({"input": window, "state": ours, "sr": rate})
        want, theirs = reference.run(["output", "stateN"], {"input": window, "state": theirs, "sr": rate})
        ours = found["stateN"]
        worst = max(worst, float(np.abs(found["output"] - want).max()))
        heard.append(float(want.max()))
    assert worst < 1e-4
    assert min(heard) < 0.2 < 0.8 < max(heard)  # there are speech and silence to tell apart
