"""What a model looks at, one file per method."""

from convattn.explain.grad_cam import grad_cam
from convattn.explain.overlay import overlay

__all__ = ["grad_cam", "overlay"]
