"""A template in a file of the user's."""

from __future__ import annotations

from pathlib import Path

from llmfactory.core.errors import UserError


def read_template(name: str) -> str:
    """Raises UserError with the file's name."""
    path = Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the chat template {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no chat template: not UTF-8") from error
