import pytest
import torch
from torch import nn

from convattn.ops.linear import Linear2d
from toys import relative_error


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_convolution_it_was_made_from(bias, stride):
    conv = nn.Conv2d(6, 4, 1, stride, bias=bias).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    assert relative_error(Linear2d.from_conv1x1(conv)(x), conv(x)) < 1e-12


def test_the_result_is_channels_last_and_reads_such_a_map_in_place():
    x = torch.randn(2, 6, 3, 5).to(memory_format=torch.channels_last)
    assert Linear2d(6, 4)(x).is_contiguous(memory_format=torch.channels_last)
    assert Linear2d(6, 4)(x.contiguous()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_form_for_graph_runtimes_is_the_convolution_again(bias, stride):
    conv = nn.Conv2d(6, 4, 1, stride, bias=bias).double()
    again = Linear2d.from_conv1x1(conv).graph_form()
    assert type(again) is nn.Conv2d
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    assert torch.equal(again(x), conv(x))
