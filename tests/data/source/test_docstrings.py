"""Pages from source text."""

from __future__ import annotations

import llmfactory.data.source.docstrings as docstrings


def test_a_page_reads_like_help() -> None:
    source = '''
"""About the module.

More.
"""
import os

def plain(a, b: int = 1, *rest, key=None) -> str:
    """What it does.

        Indented.
    Last.
    """

def undocumented(): pass

if os:
    async def later():
        """Under an if."""
else:
    def later():
        """The second of the name."""

class Kind(dict):
    """What it is."""

    @property
    def value(self):
        """A property."""

    class Inner:
        def method(self):
            """Deep."""
'''
    assert dict(docstrings.pages(source, "pkg.mod")) == {
        "pkg.mod": "pkg.mod\n=======\n\nAbout the module.\n\nMore.\n\n"
        "pkg.mod.plain(a, b: int=1, *rest, key=None) -> str\n    What it does.\n\n        Indented.\n    Last.\n\n"
        "async pkg.mod.later()\n    Under an if.\n",
        "pkg.mod.Kind": "class pkg.mod.Kind(dict)\n    What it is.\n\n    value\n        A property.\n",
        "pkg.mod.Kind.Inner": "class pkg.mod.Kind.Inner\n    method(self)\n        Deep.\n",
    }
