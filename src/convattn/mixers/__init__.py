"""Plug-in blocks that mix positions of a map: (B, C, H, W) -> (B, C, H, W), one mechanism a file."""
