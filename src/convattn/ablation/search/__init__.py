"""Pyramids of any mixers under a measured latency: drawn, timed, halved, trained again, held against others."""
