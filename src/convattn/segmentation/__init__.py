"""The task of naming every pixel: heads over a backbone's levels, data with masks, whole and sliding inference."""
