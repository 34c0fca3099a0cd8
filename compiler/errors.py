"""The two kinds of failure: what the user can mend (UserError) and what we must (InternalError); and how a run reports what it met."""

from __future__ import annotations


class TensorsmithError(Exception):
    """Base of every error Tensorsmith raises on purpose.

    ``where`` is the file, node or stage; ``what`` is what was met and why it is a problem; ``hint`` says what to do now.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.hint = hint
        head = f"{where}: {what}" if where else what
        super().__init__(f"{head}\n  what to do: {hint}" if hint else head)


class UserError(TensorsmithError):
    """A model, option, input or file that cannot be used as it is."""


class UnsupportedError(UserError):
    """A model that needs something Tensorsmith does not have; ``items`` lists every such thing, not the first alone."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", items: tuple[str, ...] = ()) -> None:
        self.items = items
        listed = "".join(f"\n  - {item}" for item in items)
        super().__init__(what + listed, where=where, hint=hint)


class UnsupportedForm(Exception):  # noqa: N818 # it names what was met; the importer makes the error
    """A form met a node it cannot import; the importer lists all of them in one UnsupportedError."""


class ArtifactError(UserError):
    """A saved module that is damaged, of another format version, or made for another CPU."""


class InternalError(TensorsmithError):
    """A broken invariant of the compiler itself; the message names the stage or pass that broke it."""


# -- what a run reports -----------------------------------------------------------------------------------------------

STATUS_WORDS = 4
"""64-bit words through which a run reports: what went wrong (0: nothing), then three numbers that belong to it."""

INDEX = 1
"""What a kernel puts into the first word for an index out of range; the index, the size and the number of the axis are the numbers."""

DIVISION = 2
"""What a kernel puts into the first word where division number 0 of its expression divides an integer by zero; the others follow. One word
says it all: workers of one run may report at the same time."""

CALL_BITS = 16
"""Bits of the first word in which a kernel reports; the number of its call is added above them."""


def index_error(index: int, axis: int, size: int, where: str) -> UserError:
    """An index of the data lies outside the axis it indexes."""
    hint = "give inputs whose indices lie inside what they index"
    return UserError(f"index {index} is out of range for axis {axis} of size {size}", where=where, hint=hint)


BY_ZERO = "an integer is divided by zero"


def division_error(where: str) -> UserError:
    """An element of an integer divisor is zero."""
    return UserError(BY_ZERO, where=where, hint="give inputs that make no divisor zero, or replace zeros in the model before it divides")
