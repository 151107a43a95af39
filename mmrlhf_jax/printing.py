"""Printing to standard output whose encoding may lack characters, such as that of a terminal with a locale of Latin-1."""

from __future__ import annotations

import codecs
import io
import sys


def is_unicode() -> bool:
    """Whether standard output can hold every character. Formats that have escapes of their own use them where it cannot."""
    return codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"


def escape_what_is_lacking() -> None:
    """Let standard output write \\u2013 and the like for characters that its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
