"""The option that takes a size of images: as many words as it has numbers, or one such as 224x320."""

from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from convattn.sizes import size_of_words

__all__ = ["SizeOption"]


def _of_words(words: list[str]) -> Any:
    return None if words == ["None"] else size_of_words(words)


def _words(size: Any) -> list[str]:
    return [str(side) for side in (size if isinstance(size, tuple) else [size])]


SizeOption = Annotated[
    int | tuple[int, ...] | None,
    PrimitiveConstructorSpec(
        "*", "SIZE", instance_from_str=_of_words, is_instance=lambda _: True, str_from_instance=_words
    ),
]
