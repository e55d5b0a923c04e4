"""Which of the known devices stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmfactory.core.errors import UserError


def device_here() -> str:
    """What PyTorch calls the first GPU; `cpu` if there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def option_of(name: str, known: Mapping[str, Sequence[str]]) -> str:
    """The option whose names a device's name begins with; the longest such name counts.

    Raises UserError where there is none.
    """
    fitting = {begin: option for option, names in known.items() for begin in names if name.startswith(begin)}
    if not fitting:
        options = ", ".join(sorted(known))
        raise UserError(
            f"hardware=detected finds {name!r}, of which nothing is known: choose one of {options}, e.g. hardware=h100_sxm"
        )
    return fitting[max(fitting, key=len)]
