"""One configuration, one loop, its checkpoints and its log."""
