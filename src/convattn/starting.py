"""Whether this process runs a command of ours, which imports what it needs and no more.

`import convattn` enters our models into timm's registry, so it imports torch and timm, which takes seconds. A command
that looks at folders, or says how it is used, needs neither.
"""

import sys

__all__ = ["SCRIPT", "runs_command"]

SCRIPT = "convattn_command"  # the module that the script `convattn` imports first


def runs_command() -> bool:
    """Whether the program is the script `convattn`, or `python -m convattn`."""
    return SCRIPT in sys.modules or _module_being_run() == "convattn"


def _module_being_run() -> str | None:
    """What stands behind -m, while Python looks for it: until then it calls the program "-m"."""
    words = sys.orig_argv
    if sys.argv[:1] != ["-m"] or "-m" not in words[:-1]:
        return None
    return words[words.index("-m") + 1]
