"""The two kinds of failure: what the user can mend (UserError) and what we must (InternalError)."""

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
