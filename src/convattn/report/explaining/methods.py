"""Every method that the page and the command know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convattn.report.explaining.along_depth import (
    receptive_field_section,
    relative_field_section,
    spectrum_section,
    variance_section,
)
from convattn.report.explaining.heats import (
    grad_cam_section,
    integrated_gradients_section,
    occlusion_section,
    sfd_section,
)
from convattn.report.explaining.inner_maps import contexts_section, gates_section, modulation_section, response_section
from convattn.report.explaining.section import Asked, OnImage, Section
from convattn.report.explaining.subject import Subject

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """How a method fills its section of the page."""

    explain: Callable[[Sequence[Subject], Asked, OnImage], Section]
    most: int = 8  # pictures that it looks at where nothing else is said


METHODS = {
    "grad_cam": Method(grad_cam_section),
    "integrated_gradients": Method(integrated_gradients_section),
    "occlusion": Method(occlusion_section),
    "sfd_score": Method(sfd_section, most=100),
    "effective_receptive_field": Method(receptive_field_section, most=50),
    "relative_receptive_field": Method(relative_field_section, most=50),
    "fourier_spectrum": Method(spectrum_section, most=50),
    "feature_map_variance": Method(variance_section, most=50),
    "response_maps": Method(response_section),
    "modulation_maps": Method(modulation_section),
    "contexts": Method(contexts_section),
    "gate_maps": Method(gates_section),
}
