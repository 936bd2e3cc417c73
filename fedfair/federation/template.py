"""Texts with places to fill, whose own dollars and braces (shell, nginx, Docker) stay as they are."""

from __future__ import annotations

import string


class Text(string.Template):
    """A text with places ``@{name}``; filling them all is `substitute`, which raises on a missing one."""

    delimiter = "@"
