"""Putting blocks into other people's models: attach behind a module, replace a convolution, detach again.

No weight that was there is renamed, and the model that is given is never touched.
"""

from convattn.surgery.history import attach, detach, replace, replay

__all__ = ["attach", "detach", "replace", "replay"]
