"""segmentation-models-pytorch takes our models as its `tu-` encoders."""

import pytest
import segmentation_models_pytorch as smp
import torch

import convattn  # registers the names that the encoders are looked up by  # noqa: F401
from toys import toy


@pytest.mark.parametrize("architecture", [smp.UPerNet, smp.FPN])
def test_a_segmenter_trains_a_step(architecture):
    model = architecture("tu-smt_tiny", encoder_weights=None, classes=3).train()
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {key: parameter.detach().clone() for key, parameter in model.encoder.named_parameters()}
    logits = model(images)
    assert logits.shape == (2, 3, 64, 64)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    unmoved = [key for key, parameter in model.encoder.named_parameters() if torch.equal(parameter, before[key])]
    assert unmoved == []


_SMALL = {name: toy(name).options for name in ("cotnet_50", "resnet50_das", "mobilenetv2_das")}


@pytest.mark.parametrize("name", _SMALL)
@pytest.mark.parametrize("stride", [8, 16])
def test_deeplab_gets_the_output_stride_that_it_asks_for(name, stride):
    images = torch.randn(2, 3, 64, 64)
    for architecture in (smp.DeepLabV3, smp.DeepLabV3Plus):
        model = architecture(
            f"tu-{name}", encoder_weights=None, classes=3, encoder_output_stride=stride, **_SMALL[name]
        ).eval()
        with torch.no_grad():
            assert model.encoder(images)[-1].shape[2:] == (64 // stride,) * 2
            assert model(images).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet50_das", 5),
        ("smt_tiny", 5),  # levels from stride 4 on: smp puts an empty one at 2, as for timm's own
        ("convattn_nextvit_small", 5),
        ("smt_nano", 4),  # levels at 2 to 16
        ("cotnet_nano", 4),  # 1 to 16
        ("resnet18_das_cifar", 3),  # 1 to 8
    ],
)
def test_unet_takes_as_many_levels_as_there_are(name, depth):
    widths, options = (16, 8, 8, 8, 8)[:depth], _SMALL.get(name, {})
    model = smp.Unet(
        f"tu-{name}", encoder_weights=None, classes=3, encoder_depth=depth, decoder_channels=widths, **options
    ).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)
