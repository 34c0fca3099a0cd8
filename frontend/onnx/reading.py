"""Model files and their tensors: everything that touches bytes from outside, checked before use."""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from compiler.errors import UnsupportedForm, UserError
from compiler.ir.graph import Array
from compiler.ir.types import ADDRESSABLE_BYTES, DType
from compiler.ops.support import ONNX_DTYPES

_EXPORT_AGAIN = "check that the file is complete (copy or download it again) and that it is an ONNX model"
_UNPACKED_TOGETHER = 1 << 20
"""Elements below a byte that are unpacked at a time, which bounds the memory that takes: one byte for each bit."""


def read_model(model: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None, str]:
    """The model, the folder its external data must lie in (None: it has none), and its name for messages.

    Raises UserError for a file that cannot be read or is not an ONNX model.
    """
    if isinstance(model, onnx.ModelProto):
        return _checked(model, model.graph.name or "model"), None, model.graph.name or "model"
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _parse(bytes(model), "model bytes"), None, "model bytes"
    if not isinstance(model, (str, Path)):
        raise UserError(f"a model cannot be a {type(model).__name__}", where="model", hint="give a path, bytes or an onnx.ModelProto")
    path = Path(model)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError("the file does not exist", where=str(path), hint=f"check the path; the current folder is {Path.cwd()}") from error
    except IsADirectoryError as error:
        raise UserError("this is a folder, not a file", where=str(path), hint="give the path of the .onnx file in it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"the file cannot be read: {error}", where=repr(str(path)), hint="check its name and permissions") from error
    return _parse(data, str(path)), path.resolve().parent, str(path)


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if not data:
        raise UserError("the file is empty", where=where, hint=_EXPORT_AGAIN)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UserError("this is not an ONNX model, or it is cut off: it does not parse as one", where=where, hint=_EXPORT_AGAIN) from error
    return _checked(model, where)


def _checked(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    if not model.HasField("graph") or not model.graph.output:
        raise UserError("this holds no graph with outputs, so it is not a whole ONNX model", where=where, hint=_EXPORT_AGAIN)
    if not model.opset_import:
        raise UserError("the model does not say which opset it was written for", where=where, hint="export it again with a current exporter")
    return model


Tensor = onnx.TensorProto | onnx.SparseTensorProto


def initializers(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """The tensors of a graph by name, sparse ones (whose name is that of their values) included."""
    return {tensor.name: tensor for tensor in graph.initializer} | {tensor.values.name: tensor for tensor in graph.sparse_initializer}


class TensorReader:
    """Turns TensorProtos into arrays: views of the model's own bytes, or of external files mapped into memory."""

    def __init__(self, folder: Path | None, where: str) -> None:
        self._folder = folder
        self._where = where
        self._files: dict[Path, mmap.mmap] = {}

    def array(self, tensor: Tensor) -> Array:
        """The tensor's data, a sparse one as a dense array. Raises UnsupportedForm for its element type, UserError where it contradicts itself."""
        return self._spread(tensor) if isinstance(tensor, onnx.SparseTensorProto) else self._dense(tensor)

    def _spread(self, tensor: onnx.SparseTensorProto) -> Array:
        """A tensor of zeros with some elements given, at flat positions ``[N]`` or at coordinates ``[N, rank]``."""
        values, places, shape = self._dense(tensor.values), self._dense(tensor.indices), tuple(tensor.dims)
        name, rank = tensor.values.name or "(unnamed)", len(shape)
        if values.ndim != 1 or places.dtype != np.int64 or places.shape not in ((values.size,), (values.size, rank)):
            raise self._error(f"sparse tensor {name!r} has values of shape {list(values.shape)} and indices of shape {list(places.shape)}")
        if any(dim < 0 for dim in shape) or prod(shape) * values.itemsize > ADDRESSABLE_BYTES:
            raise self._error(f"sparse tensor {name!r} has dims that no memory holds: {list(shape)}")
        limits = np.array(shape if places.ndim == 2 else prod(shape), np.int64)
        if ((places < 0) | (places >= limits)).any():
            raise self._error(f"sparse tensor {name!r} of shape {list(shape)} has an index beyond it")
        dense = np.zeros(shape, values.dtype)
        dense[tuple(places.T) if places.ndim == 2 else np.unravel_index(places, shape)] = values
        return dense

    def _dense(self, tensor: onnx.TensorProto) -> Array:
        dtype = ONNX_DTYPES.get(tensor.data_type)
        name = tensor.name or "(unnamed)"
        if dtype is None:
            raise UnsupportedForm(f"tensor {name!r} has element type {_type_name(tensor.data_type)}, which is not supported")
        shape = tuple(tensor.dims)
        if any(dim < 0 for dim in shape):
            raise self._error(f"tensor {name!r} has a negative dim: {list(shape)}")
        count = prod(shape)
        if dtype is DType.STRING:
            return self._strings(tensor, count, name).reshape(shape)
        size = -(-count * dtype.bits // 8)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return _elements(self._external(tensor, size, name), dtype, count).reshape(shape)
        if tensor.HasField("raw_data"):
            raw = tensor.raw_data
            if len(raw) != size:
                raise self._error(f"tensor {name!r} of shape {list(shape)} needs {size} bytes and has {len(raw)}")
            return _elements(np.frombuffer(raw, np.uint8), dtype, count).reshape(shape)
        try:
            return np.asarray(numpy_helper.to_array(tensor)).astype(dtype.numpy, copy=False).reshape(shape)
        except (ValueError, TypeError) as error:
            raise self._error(f"tensor {name!r} does not hold the {count} elements of its shape {list(shape)}") from error

    def _strings(self, tensor: onnx.TensorProto, count: int, name: str) -> Array:
        if len(tensor.string_data) != count:
            raise self._error(f"tensor {name!r} of shape {list(tensor.dims)} needs {count} strings and has {len(tensor.string_data)}")
        found: Array = np.empty(count, object)
        try:
            found[:] = [text.decode() for text in tensor.string_data]
        except UnicodeDecodeError as error:
            raise self._error(f"tensor {name!r} holds a string that is not UTF-8: {error}") from error
        return found

    def _external(self, tensor: onnx.TensorProto, nbytes: int, name: str) -> Array:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._external_path(entries.get("location", ""), name)
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(nbytes)))
        except ValueError as error:
            raise self._error(f"the external data of tensor {name!r} has an offset or length that is not a number") from error
        size = path.stat().st_size
        if offset < 0 or length != nbytes or offset + length > size:
            raise self._error(
                f"tensor {name!r} needs {nbytes} bytes, and its external data is said to be {length} bytes"
                f" from {offset} on in {path.name}, which has {size}"
            )
        if nbytes == 0:
            return np.zeros(0, np.uint8)
        if path not in self._files:
            with path.open("rb") as file:
                self._files[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._files[path], np.uint8, nbytes, offset)

    def _external_path(self, location: str, name: str) -> Path:
        if self._folder is None:
            raise UserError(
                f"tensor {name!r} lies in the external file {location!r}, but the model was not given as a file",
                where=self._where,
                hint="give the path of the model, or load its data into it with onnx.load(path)",
            )
        try:
            path = (self._folder / location).resolve()
            exists = path.is_file()
        except (OSError, ValueError) as error:
            raise self._error(f"tensor {name!r} refers to external data at {location[:100]!r}, which is no path: {error}") from error
        if not location or Path(location).is_absolute() or not path.is_relative_to(self._folder):
            raise UserError(
                f"tensor {name!r} refers to external data at {location!r}, outside the model's folder",
                where=self._where,
                hint="keep external data beside the model, under a relative path; do not use models that point elsewhere",
            )
        if not exists:
            raise UserError(
                f"the external data file {location!r} of tensor {name!r} does not exist in {self._folder}",
                where=self._where,
                hint="put it beside the model; both files belong together",
            )
        return path

    def _error(self, what: str) -> UserError:
        return UserError(what, where=self._where, hint=_EXPORT_AGAIN)


def _elements(data: Array, dtype: DType, count: int) -> Array:
    """Bytes as ``count`` elements. Those below a byte lie one after another, in ONNX from the low bits of a byte on; each gets its own."""
    if dtype.bits % 8 == 0:
        return data.view(dtype.numpy)
    codes = np.empty(count, np.uint8)
    for start in range(0, count, _UNPACKED_TOGETHER):
        some = min(_UNPACKED_TOGETHER, count - start)
        bits = np.unpackbits(data[start * dtype.bits // 8 :], count=some * dtype.bits, bitorder="little")
        codes[start : start + some] = np.packbits(bits.reshape(some, dtype.bits), axis=1, bitorder="little")[:, 0]
    return codes.view(dtype.numpy)


def _type_name(number: int) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"number {number}"
