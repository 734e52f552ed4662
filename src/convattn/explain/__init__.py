"""What a model looks at, one file per method. What draws raises `MissingExtra` without matplotlib."""

from convattn.explain.blocks import available_methods
from convattn.explain.contexts import (
    contexts,
    draw_local_weights,
    draw_shares,
    dynamic_shares,
    kernel_of,
    local_weights,
)
from convattn.explain.feature_variance import draw_variances, feature_map_variance
from convattn.explain.figures import as_picture, map_picture
from convattn.explain.front import Point, draw_front, front_of, points_of
from convattn.explain.gates import draw_offsets, draw_points, gate_maps, sampling_points
from convattn.explain.grad_cam import grad_cam
from convattn.explain.integrated_gradients import integrated_gradients
from convattn.explain.modulation_maps import modulation_maps
from convattn.explain.occlusion import occlusion
from convattn.explain.overlay import overlay
from convattn.explain.receptive_field import areas_table, draw_receptive_fields, effective_receptive_field
from convattn.explain.relative_field import draw_relative_fields, relative_receptive_field
from convattn.explain.response_maps import response_maps
from convattn.explain.sfd import mean_score, sfd_score
from convattn.explain.spectrum import draw_high_frequencies, draw_spectra, fourier_spectrum

__all__ = [
    "Point",
    "areas_table",
    "as_picture",
    "available_methods",
    "contexts",
    "draw_front",
    "draw_high_frequencies",
    "draw_local_weights",
    "draw_offsets",
    "draw_points",
    "draw_receptive_fields",
    "draw_relative_fields",
    "draw_shares",
    "draw_spectra",
    "draw_variances",
    "dynamic_shares",
    "effective_receptive_field",
    "feature_map_variance",
    "fourier_spectrum",
    "front_of",
    "gate_maps",
    "grad_cam",
    "integrated_gradients",
    "kernel_of",
    "local_weights",
    "map_picture",
    "mean_score",
    "modulation_maps",
    "occlusion",
    "overlay",
    "points_of",
    "relative_receptive_field",
    "response_maps",
    "sampling_points",
    "sfd_score",
]
