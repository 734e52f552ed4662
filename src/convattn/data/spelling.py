"""Names of classes and files as they are compared: in one normal form of Unicode.

macOS writes é as an e and an accent (NFD), others as one character (NFC); both look the same.
"""

import unicodedata

__all__ = ["spelled"]


def spelled(name: str) -> str:
    """A name in the form NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
