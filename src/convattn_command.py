"""What the script `convattn` runs; by this module the package knows that it is, see `convattn.starting`."""

from convattn.cli.main import main

__all__ = ["main"]
