"""The texts of a model file, checked once: what does not decode would come as bytes where names are expected."""

from __future__ import annotations

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from compiler.errors import UserError


def check_texts(model: onnx.ModelProto, where: str) -> None:
    """Raises UserError for a name, or other text, that is not UTF-8."""
    waiting: list[Message] = [model]
    while waiting:
        message = waiting.pop()
        for field, value in message.ListFields():
            if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
                continue
            parts = [value] if isinstance(value, (str, bytes, Message)) else value
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting.extend(parts)
            elif any(isinstance(part, bytes) for part in parts):
                hint = "check that the file is complete (copy or download it again), or export it again"
                raise UserError(f"{field.name} of a {message.DESCRIPTOR.name} is not UTF-8 text: {value!r:.100}", where=where, hint=hint)
