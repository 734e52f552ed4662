"""What splits are called."""

__all__ = ["SPLITS", "SPLIT_WORDS"]

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLIT_WORDS = frozenset(word for words in SPLITS.values() for word in words)
