"""glibc is told to keep freed memory; other C libraries are left alone."""

from __future__ import annotations

import platform

import pytest

from llmfactory.run.allocator import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_accepts_the_options() -> None:
    assert keep_freed_memory()


def test_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
