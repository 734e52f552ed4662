"""Where a block goes: the places that are found, chosen or called by any of their names, and those that are refused."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import convattn
from attached import resnet, shaken
from networks import NETWORKS, build
from toys import randomise_norms, relative_error


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name].num_blocks])
def test_blocks_are_found(name):
    model, images = build(name)
    gated = convattn.attach(model, "eca", where="blocks")
    assert len(gated.surgery) == NETWORKS[name].num_blocks
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6


def test_blocks_of_an_attached_model_are_its_own():
    model, _ = resnet()
    names = [entry["place"] for entry in convattn.attach(model, "sam", where="blocks", num_heads=2).surgery]
    changed = convattn.attach(model, "sam", where=["conv1"], num_heads=2)
    assert [entry["place"] for entry in convattn.attach(changed, "eca", where="blocks").surgery[1:]] == names


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18_das", [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]),
        ("mobilenetv2_das", [f"blocks.{i}.{j}" for i, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(depth)]),
    ],
)
def test_gates_that_a_network_has_already_are_no_blocks(name, blocks):
    with torch.device("meta"):
        model = convattn.create_model(name)
    assert [entry["place"] for entry in convattn.attach(model, "se", where="blocks").surgery] == blocks


def test_a_choice_by_function():
    model, images = resnet()
    changed = convattn.attach(
        model, "se", where=lambda name, module: isinstance(module, nn.BatchNorm2d) and "2" in name
    )
    assert changed.surgery and all("2" in entry["place"] for entry in changed.surgery)
    with torch.no_grad():
        assert relative_error(changed(images), model(images)) < 1e-6


def test_pools_at_the_end_are_no_stages():
    model = torchvision.models.vgg11_bn(num_classes=2, init_weights=False)
    places = [entry["place"] for entry in convattn.attach(model, "se").surgery]
    assert places == ["features.2", "features.6", "features.13", "features.20", "features.27"]


def test_a_model_without_stages_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(ValueError, match=r"Sequential has no stages that can be found; name the modules in where"):
        convattn.attach(model, "se", input_size=(3, 32, 32))


def test_a_model_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"the output of blocks.0 has shape \(1, \d+, 64\), not that of a map"):
        convattn.attach(timm.create_model("test_vit"), "se")


def test_a_module_that_does_not_run_once_is_refused():
    model, _ = build("plain")
    with pytest.raises(ValueError, match=r"relu runs 3 times in a forward pass; choose a module that runs once"):
        convattn.attach(model, "se", where=["relu"])
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=r"unused does not run by itself in a forward pass; known: "):
        convattn.attach(model, "se", where=["unused"])


@pytest.mark.parametrize("build_dense", [torchvision.models.densenet121, lambda: timm.create_model("densenet121")])
def test_a_container_that_runs_all_it_holds_is_refused(build_dense):
    with torch.device("meta"):
        model = build_dense()
    with pytest.raises(ValueError, match=r"features.denseblock1 runs whatever is registered in it, so no block can be"):
        convattn.attach(model, "se", where=["features.denseblock1"])
    changed = convattn.attach(model, "das", where=["features.transition1.norm"])
    assert changed(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
    places = [entry["place"] for entry in convattn.attach(model, "se").surgery]  # the stages end in their transitions
    assert places == [*(f"features.transition{index}" for index in (1, 2, 3)), "features.norm5"]


class TwoNames(nn.Module):
    """A convolution, a stage and a block under two names each; the block runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(self.block, nn.Conv2d(16, 16, 1), self.block)
        self.stage = self.last = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1))

    def forward(self, x):
        return self.last(self.body(self.first(x)))


@pytest.mark.parametrize(
    "where", [["first"], ["last"], ["body"], lambda name, _: name == "last.0"], ids=["first", "last", "body", "chosen"]
)
def test_a_place_may_be_called_by_any_of_its_names(where):
    model, images = TwoNames().eval(), torch.randn(2, 3, 9, 9)
    randomise_norms(model)
    gated = convattn.attach(model, "se", where=where)
    assert [entry["place"] for entry in gated.surgery] in (["stem"], ["stage"], ["body"], ["stage.0"])
    assert gated.stage is gated.last and gated.stem is gated.first
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6
        assert relative_error(shaken(gated)(images), model(images)) > 1e-3
        assert torch.equal(convattn.detach(gated)(images), model(images))


def test_a_block_that_runs_in_two_places_is_refused_by_its_first_name():
    with pytest.raises(ValueError, match=r"block\.2 runs 2 times in a forward pass; choose a module that runs once"):
        convattn.attach(TwoNames(), "se", where=["body.2.2"])


def test_who_listens_to_the_place_already_gets_the_new_map_and_may_change_it():
    model, images = resnet()
    heard = []
    model.layer2.get_submodule("0").register_forward_hook(lambda _m, _args, output: heard.append(output))
    model.layer2.get_submodule("0").register_forward_hook(lambda _m, _args, output: 2 * output)
    changed = convattn.attach(model, "se", where=["layer2.0"], init="paper")
    assert heard == []  # nobody was shown the maps of the search
    place = changed.layer2.get_submodule("0")
    inside = []
    place.attached.mixer.register_forward_hook(lambda _m, _args, output: inside.append(output))
    behind = []
    changed.layer3.register_forward_pre_hook(lambda _m, args: behind.append(args[0]))
    with torch.no_grad():
        changed(images)
    assert torch.equal(heard[0], inside[0])
    assert torch.equal(behind[0], 2 * inside[0])


def test_a_model_that_has_run_with_gradients_is_taken():
    model = timm.create_model("levit_128s", num_classes=2, depth=(1, 1, 1)).eval()
    images = torch.randn(1, 3, 224, 224)
    want = model(images).detach()  # its attentions keep their bias now
    assert relative_error(convattn.attach(model, "se", where=["stem"])(images), want) < 1e-6


class Concatenating(nn.Sequential):
    """A stage that puts behind one another what each of its layers gives."""

    def __init__(self):
        super().__init__(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1))

    def forward(self, x):
        for layer in self:
            x = torch.cat([x, layer(x)], 1)
        return x


class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        for layer in self.children():
            x = x + layer(x)
        return x


class InTurn(Summing):
    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


def staged(stage, width):
    down = [nn.Sequential(nn.Conv2d(width, 8, 1), nn.Conv2d(8, 8, 2, stride=2)) for _ in range(2)]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 2, stride=2))
    return nn.Sequential(stem, stage(), down[0], stage(), down[1]).eval()


@pytest.mark.parametrize(("stage", "width"), [(Concatenating, 24), (Summing, 8)])
def test_a_block_goes_behind_what_follows_a_stage_that_runs_all_it_holds(stage, width):
    model, images = staged(stage, width), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"^1 runs whatever is registered in it, so no block can be"):
        convattn.attach(model, "se", where=["1"])
    gated = convattn.attach(model, "se", where="stages")
    assert not {"1", "3"} & {entry["place"] for entry in gated.surgery} and len(gated.surgery) >= 2
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6


def test_a_stage_that_hands_a_value_from_child_to_child_takes_a_block():
    model, images = staged(InTurn, 8), torch.randn(2, 3, 32, 32)
    gated = convattn.attach(model, "se", where=["1", "3"])
    with torch.no_grad():
        assert relative_error(gated(images), model(images)) < 1e-6
        assert relative_error(shaken(gated)(images), model(images)) > 1e-3
