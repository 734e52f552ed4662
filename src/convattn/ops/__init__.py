"""Numeric kernels, each with a plain reference beside the fast path."""
