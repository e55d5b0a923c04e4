"""What the rows of new tokens begin as, in a model that gets more of them."""

from __future__ import annotations

from enum import Enum


class Beginning(Enum):
    mean_of_pieces = "mean_of_pieces"
    """The mean of the rows of the old tokens that the token's text was made of."""
    mean = "mean"
    """The mean of all rows that are kept."""
    random = "random"
    """As in a new model."""
