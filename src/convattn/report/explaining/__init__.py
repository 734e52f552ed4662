"""The page of explanations: methods, layers and models side by side."""
