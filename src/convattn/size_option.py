"""The option that takes a size of images: as many words as it has numbers, or one such as 224x320."""

from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from convattn.sizes import size_of_words

__all__ = ["SizeOption"]


SizeOption = Annotated[
    int | tuple[int, ...] | None,
    PrimitiveConstructorSpec(
        "*",
        "SIZE",
        instance_from_str=lambda words: None if words == ["None"] else size_of_words(words),
        is_instance=lambda _: True,
        str_from_instance=lambda size: [str(side) for side in (size if isinstance(size, tuple) else [size])],
    ),
]
