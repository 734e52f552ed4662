"""The inference form of a model, its export to runtimes, and the gate that compares the numbers."""
