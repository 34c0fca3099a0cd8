"""The model a benchmark was asked for: a file, a model of the shared zoo by name, or MobileNetV2 built here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.engines import random_feeds
from compiler.errors import UserError
from examples.models import mobilenet_v2

Array = np.ndarray[Any, np.dtype[Any]]

ROOT = Path(__file__).parent.parent


def zoo_folder() -> Path:
    """The folder of shared models: ``TENSORSMITH_MODELS``, by default ``../shared/models`` beside the project."""
    return Path(os.environ.get("TENSORSMITH_MODELS", ROOT.parent / "shared" / "models"))


def load(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model called name and inputs for it. ``mobilenet_v2`` is built here. Raises UserError where there is no such model."""
    if name == "mobilenet_v2":
        model = mobilenet_v2()
        return model, random_feeds(model)
    if Path(name).is_file():
        model = onnx.load(name)
        return model, random_feeds(model)
    if name.endswith(".onnx") or _zoo() is None:
        where, hint = f"benchmarks: {zoo_folder()}", "give an existing file, or set TENSORSMITH_MODELS to a folder with zoo.py"
        raise UserError(f"{name} is not a file, and there is no model zoo here", where=where, hint=hint)
    if name not in zoo_names():
        raise UserError(f"the zoo in {zoo_folder()} has no model {name}", where="benchmarks", hint=f"use one of {', '.join(zoo_names())}")
    model, feeds = _zoo().load(name)
    return model, dict(feeds)


def zoo_names() -> list[str]:
    """Every model of the zoo. Raises UserError where there is no zoo."""
    zoo = _zoo()
    if zoo is None:
        raise UserError(f"there is no model zoo in {zoo_folder()}", where="benchmarks", hint="set TENSORSMITH_MODELS to a folder with zoo.py")
    return list(zoo.names())


def _zoo() -> Any:
    """The module that makes the models of the zoo; None where there is no zoo."""
    loader = zoo_folder() / "zoo.py"
    spec = importlib.util.spec_from_file_location("zoo", loader)
    if not loader.is_file() or spec is None or spec.loader is None:
        return None
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    return zoo
