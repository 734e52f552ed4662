"""Somebody's script with our models among timm's: `python -m convattn.timm train.py --model smt_tiny …`.

timm's own scripts (`train.py`, `validate.py`, …) lie in its repository, not in its package, and import timm alone.
"""

import runpy
import sys
from pathlib import Path

import convattn  # enters our names into timm's registry  # noqa: F401

__all__ = ["main"]


def main() -> None:
    """Run the script that the first argument names as if it had been started itself, with the arguments behind it."""
    script, *arguments = sys.argv[1:] or [""]
    if not Path(script).is_file():
        print(
            f"{script or 'no script'}: not a file; give a script: python -m convattn.timm train.py …", file=sys.stderr
        )
        raise SystemExit(2)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))  # where a script's own imports are looked for
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
