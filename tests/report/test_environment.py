import platform

import torch

from convattn.report.environment import describe_environment


def test_names_versions_machine_and_threads():
    rows = dict(describe_environment())
    assert rows["Python"] == platform.python_version()
    assert rows["torch"] == torch.__version__.partition("+")[0] or rows["torch"] == torch.__version__
    assert rows["Threads"] == str(torch.get_num_threads())
    assert rows["Processor"]
