"""The chunks of a PNG file that tell nothing of its pixels."""

__all__ = ["without_texts"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # comments, prompts, annotations, and the colour profile


def without_texts(png: bytes) -> bytes | None:
    """A PNG file without its texts and its colour profile; None if it has none, or is no PNG."""
    if not png.startswith(_SIGNATURE):
        return None
    kept, at = [_SIGNATURE], len(_SIGNATURE)
    found = False
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4])  # length, kind, content, checksum
        if png[at + 4 : at + 8] in _TEXTS:
            found = True
        else:
            kept.append(png[at:end])
        at = end
    return b"".join(kept) if found else None
