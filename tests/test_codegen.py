from __future__ import annotations

import subprocess

import pytest

from backends.llvm import codegen
from compiler.errors import InternalError
from compiler.target import native

TEXTS = [f"define i64 @f{number}() {{\n  ret i64 {number}\n}}\n" for number in range(3)]


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The helper processes that are started, of which even small modules have some."""
    started: list[subprocess.Popen[bytes]] = []
    start = codegen._start_helper

    def recording() -> subprocess.Popen[bytes]:
        started.append(start())
        return started[-1]

    monkeypatch.setattr(codegen, "_PARALLEL_LINES", 1)
    monkeypatch.setattr(codegen, "_start_helper", recording)
    return started


def test_helper_processes_make_the_same_objects(helpers: list[subprocess.Popen[bytes]]) -> None:
    target = native()
    assert codegen.objects(TEXTS, target, 3) == [codegen.object_code(text, target) for text in TEXTS]
    assert len(helpers) == 2


def test_an_interrupt_ends_the_helper_processes(helpers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(codegen, "object_code", interrupted)
    with pytest.raises(KeyboardInterrupt):
        codegen.objects(TEXTS, native(), 3)
    assert [helper.returncode for helper in helpers] == [-9, -9]


def test_a_helper_that_fails_is_told(helpers: list[subprocess.Popen[bytes]], capfd: pytest.CaptureFixture[str]) -> None:
    target = native()
    with pytest.raises(InternalError, match="code generation process failed"):
        codegen.objects([*TEXTS[:1], "this is no module"], target, 2)
    assert len(helpers) == 1
    assert "rejects the generated IR" in capfd.readouterr().err
