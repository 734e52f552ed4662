"""Which block is worth it: designs beside one another under one recipe, with seeds, controls and intervals."""
