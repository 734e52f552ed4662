"""What a checkpoint that cannot be used raises, and what one that is used in part warns with."""

from convattn.nearest import UnknownName

__all__ = ["CheckpointError", "UnknownWeights", "WeightsNote"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not belong to the model."""


class UnknownWeights(CheckpointError, UnknownName):
    """A tag of published weights that a model does not have."""


class WeightsNote(UserWarning):
    """What was mapped, adapted, left over or left fresh when weights were loaded: one line for a file."""
