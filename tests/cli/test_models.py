"""`convattn models`: what is registered, counted and published, within limits and in order; and what files hold."""

import json
from types import SimpleNamespace

import pytest

import convattn
from convattn.cli import model_list
from convattn.cli.main import main
from convattn.cli.quantity import quantity
from convattn.model_files import save_model
from tiny_exports import tiny_net, write, write_sealed
from toys import build_toy


def listed(capsys, *args):
    """The rows as JSON, and what was said beside them."""
    assert main(["models", *args, "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_lists_every_model(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in convattn.list_models())
    assert "11,506,536" in shown
    assert "82.2" in shown
    assert "README of github.com/AFeng-x/SMT" in shown


def test_a_pattern_selects(capsys):
    assert main(["models", "smt_tin*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "smt_tiny"
    assert row["parameters"] == 11_506_536
    assert [weights["tag"] for weights in row["weights"]] == ["in1k"]


def test_shows_one(capsys):
    assert main(["models", "smt_large.in22k_ft_in1k_384"]) == 0
    shown = capsys.readouterr().out
    assert "input 3 x 384 x 384, bicubic interpolation, crop ratio 1.0 (squash)" in shown
    assert "level at stride 16: 384 channels (stages.2)" in shown
    assert "top-1 88.1 %, top-5 98.4 % (published: README of github.com/AFeng-x/SMT), licence MIT" in shown


def test_says_what_is_left_out_where_a_copy_lies_and_no_accuracy_that_is_unknown(capsys):
    assert main(["models", "nextvit_small.in1k_384"]) == 0
    shown = capsys.readouterr().out
    assert "the last positions of a map that fill no run are left out of them" in shown
    assert "top-1 83.6 % (published: README of github.com/bytedance/Next-ViT), licence Apache-2.0" in shown
    assert "copy: https://huggingface.co/timm/nextvit_small.bd_in1k_384/resolve/main/model.safetensors" in shown
    assert "None" not in shown


def test_accuracies_without_a_file(capsys):
    assert main(["models", "resnet18_das"]) == 0
    shown = capsys.readouterr().out
    assert "no published weights\nwithout a file: top-1 72.03 %, top-5 90.7 % at 224 pixels" in shown
    assert "(published: arXiv 2311.12091)" in shown
    assert main(["models", "groupmixformer_small"]) == 0
    assert "without a file: top-1 85.0 % at 384 pixels (published: arXiv 2311.15157)" in capsys.readouterr().out

    assert main(["models", "resnet*_das"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("resnet50_das "))
    assert line.split()[1:4] == ["none", "published", "224"] and "78.04" in line and "arXiv 2311.12091" in line


def test_says_how_a_file_that_no_program_can_fetch_comes_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVATTN_WEIGHTS", str(tmp_path))
    assert main(["models", "se_cotnetd_152"]) == 0
    shown = capsys.readouterr().out
    assert "84.6 %, top-5 97.1 % (published: README of github.com/JDAI-CV/CoTNet), licence not recorded here" in shown
    assert "by hand from https://drive.google.com/file/d/1E43T2jS37gR07p_FVWnjJNkMWeYMXgX9/view" in shown
    assert f"into {tmp_path} as se_cotnetd_152_320.pth" in shown

    assert main(["models", "groupmixformer_tiny"]) == 0
    shown = capsys.readouterr().out
    assert "licence MIT" in shown and f"into {tmp_path} as groupmixformer_tiny.pth" in shown


def test_shows_a_saved_model_and_another_size(tmp_path, capsys):
    model = build_toy("smt_nano")
    save_model(model, tmp_path / "toy.safetensors")
    assert main(["models", str(tmp_path / "toy.safetensors"), "--image-size", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] == convattn.count(model, (3, 64, 64)).macs
    assert [level["reduction"] for level in found["levels"]] == [2, 4, 8, 16]


def test_shows_what_was_inserted_into_a_saved_model(tmp_path, capsys):
    model = convattn.create_model("timm:test_resnet", num_classes=3)
    model = convattn.attach(model, "das", where=["layer3", "layer4"], alpha=0.5)
    save_model(
        convattn.replace(model, "cot", match=lambda name, conv: name == "layer1.0.conv2"), tmp_path / "m.safetensors"
    )
    assert main(["models", str(tmp_path / "m.safetensors")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["surgery", "place", "mixer", "options", "start", "channels", "parameters"] in rows
    attached = model.surgery[1]
    assert ["attach", "layer4.0", "das", "alpha=0.5", "identity", "96", f"{attached['parameters']:,}"] in rows
    assert any(row[:5] == ["replace", "layer1.0.conv2", "cot", "-", "-"] for row in rows)
    assert main(["models", str(tmp_path / "m.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["surgery"][:2] == model.surgery


def test_shows_timms(capsys):
    assert main(["models", "timm:resnet18"]) == 0
    shown = capsys.readouterr().out
    assert "parameters 11,689,512" in shown
    assert "no published weights" not in shown


def test_limits_and_order(capsys):
    limits = ["--max-params", "15M", "--max-macs", "4G", "--min-top1", "82", "--pretrained"]
    rows, _ = listed(capsys, *limits, "--sort", "top1")
    assert [(row["name"], row["weights"][0]["top1"]) for row in rows] == [
        ("groupmixformer_tiny", 82.6),
        ("smt_tiny", 82.2),
    ]
    assert [row["name"] for row in listed(capsys, *limits, "--sort", "params")[0]] == [
        "groupmixformer_tiny",
        "smt_tiny",
    ]
    everything = [row["name"] for row in listed(capsys, "--sort", "params")[0]]
    assert everything[:2] == ["nextvit_nano", "nextvit_nano_extra_norm"] and everything[-1] == "smt_large"
    rows, _ = listed(capsys, "--sort", "top1")
    assert rows[0]["name"] == "smt_large" and rows[0]["image_size"] == 384
    assert {
        row["name"] for row in listed(capsys, "--pretrained")[0]
    } == convattn.weights.records.OFFICIAL_WEIGHTS.keys()


@pytest.mark.parametrize(
    ("limit", "tags"),
    [
        (("--max-macs", "20G"), ["in22k_ft_in1k", "in22k"]),  # at 384 pixels it has 55 G
        (("--max-params", "90000K"), ["in22k_ft_in1k", "in22k_ft_in1k_384"]),  # 21,841 classes need 96.6 M
        (("--min-top1", "88"), ["in22k_ft_in1k_384"]),
        (("--min-top1", "88.1"), ["in22k_ft_in1k_384"]),
    ],
)
def test_limits_are_for_each_of_a_models_weights(limit, tags, capsys):
    ((row,), _) = listed(capsys, "smt_large", *limit)
    assert [weights["tag"] for weights in row["weights"]] == tags
    assert row["macs"] == row["weights"][0]["macs"] and row["image_size"] == row["weights"][0]["image_size"]


def test_a_pattern_may_name_the_weights(capsys):
    rows, _ = listed(capsys, "nextvit_*.in1k_384")
    assert [(row["name"], len(row["weights"]), row["image_size"]) for row in rows] == [
        ("nextvit_base", 1, 384),
        ("nextvit_large", 1, 384),
        ("nextvit_small", 1, 384),
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [("15M", 15_000_000), ("1.5g", 1_500_000_000), (" 800 K", 800_000), ("11,506,536", 11_506_536), (".5M", 500_000)],
)
def test_numbers_as_people_write_them(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize(
    "text", ["", "M", "15X", "-3M", "0", "0.2", "1,5M", "nan", "inf", "15MM", "1e6", "\u0661M", "1.2.3", "9" * 99]
)
def test_what_is_no_number_is_refused(text, capsys):
    assert main(["models", f"--max-params={text}"]) == 2
    assert capsys.readouterr().err == (
        f"convattn models: max-params {text!r} must be a number above 0, such as 800K, 15M or 1.5G\n"
    )


def test_lists_timms_with_what_counting_gives(capsys, monkeypatch):
    rows, _ = listed(capsys, "timm:test_res*")
    (row,) = rows
    assert (row["name"], row["image_size"]) == ("timm:test_resnet", 160)
    cost = convattn.count(convattn.create_model("timm:test_resnet"))
    assert (row["parameters"], row["macs"]) == (cost.parameters, cost.macs)
    assert [(weights["tag"], weights["license"]) for weights in row["weights"]] == [("r160_in1k", "apache-2.0")]
    assert listed(capsys, "timm:test_res*", "--max-params", "1M", "--pretrained")[0] == rows
    assert main(["models", "timm:test_res*", "--max-params", "100K"]) == 1
    error = capsys.readouterr().err
    assert "none of the 1 models that match 'timm:test_res*' has at most 100,000 parameters" in error
    assert not any("smt_" in name for name in convattn.list_models("timm:*"))

    monkeypatch.setattr(model_list, "create_model", None)  # so many are not built
    rows, said = listed(capsys, "timm:resnet*")
    assert {row["parameters"] for row in rows} == {None} and len(rows) > 60
    assert "timm states no parameters, and " in said and "are too many to build and count; 60 or fewer are" in said


def test_a_model_that_cannot_be_counted_is_named_and_the_others_are(capsys, monkeypatch):
    create = convattn.create_model

    def fail_once(name, **options):
        if "vit2" in name:
            raise RuntimeError("no\nsuch luck")
        return create(name, **options)

    monkeypatch.setattr(model_list, "create_model", fail_once)
    rows, said = listed(capsys, "timm:test_vit*", "--sort", "params")
    assert said == "timm:test_vit2.r160_in1k: no counting: no such luck\n"
    assert [row["parameters"] is None for row in rows] == [False] * (len(rows) - 1) + [True]


def test_the_order_of_latency_is_measured(capsys, monkeypatch):
    rows, said = listed(capsys, "nextvit_nano", "--sort", "latency")
    assert rows[0]["latency_ms"] > 0
    assert said.startswith("latency: median of 7 calls, eager, one image in float32, ")

    asked = []

    def benchmark(names, runtimes, image_sizes, **options):
        asked.append((*names, *runtimes, *image_sizes))
        if "hybrid" in names:
            return SimpleNamespace(rows=(), not_measured=[SimpleNamespace(why="nothing\nto fuse")])
        latency = SimpleNamespace(median_ms=1000.0 / len(names[0]) + image_sizes[0])
        return SimpleNamespace(rows=[SimpleNamespace(latency=latency)], not_measured=())

    monkeypatch.setattr(model_list, "benchmark", benchmark)
    args = ["models", "[hn]*[dl]", "--sort", "latency", "--runtime", "fused"]
    assert main(args) == 0
    captured = capsys.readouterr()
    assert captured.err == "hybrid: no timing: nothing to fuse\n"
    lines = [line.split() for line in captured.out.splitlines()]
    times = [line[6] for line in lines[1:-1] if "in1k" in line[1]]
    assert lines[0][5] == "ms" and lines[-2][0] == "hybrid" and "-" in lines[-2]
    assert [line[2] for line in lines[1:5]] == ["224", "224", "384", "384"], times
    assert len(asked) == 3  # weights of one size are one model


@pytest.fixture
def run_folder(tmp_path):
    model = convattn.create_model("timm:test_resnet", num_classes=12)
    names = [f"kind {number}" for number in range(12)]
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": names, "input_size": (3, 48, 48)}
    model.bn1.eps = 0.25
    folder = tmp_path / "photos"
    folder.mkdir()
    save_model(convattn.attach(model, "das", where=["layer4"]), folder / "best.safetensors", metrics={"top1": 93.5})
    return folder


def test_a_run_folder_is_described(run_folder, capsys):
    assert main(["models", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run_folder}  timm:test_resnet (ResNet), 12 classes"
    text = "\n".join(lines)
    assert "input 3 x 48 x 48, bilinear interpolation, crop ratio 0.95 (center), mean 0.5, 0.5, 0.5, deviation" in text
    assert f"classes {', '.join(f'kind {number}' for number in range(10))} and 2 more" in lines
    assert "stored with the weights: top1 93.5" in lines
    assert "set by hand: bn1.eps = 0.25" in lines
    assert any(line.split()[:3] == ["attach", "layer4.0", "das"] for line in lines)
    assert any(line.startswith("level at stride 32: 96 channels") for line in lines)
    assert lines[-1].startswith(f"weights {run_folder / 'best.safetensors'}, float32, ")
    assert "published" not in text

    found = json.loads((main(["models", str(run_folder), "--json"]), capsys.readouterr().out)[1])
    assert (found["architecture"], found["num_classes"], found["metrics"]) == ("timm:test_resnet", 12, {"top1": 93.5})
    assert [entry["kind"] for entry in found["surgery"]] == ["attach", "set"]


def test_an_exported_file_is_described_without_running_it(tmp_path, capsys, monkeypatch):
    path = write_sealed(tmp_path, "torch_export")
    monkeypatch.setattr("convattn.deploy.runtimes.torch_export.open_file", None)
    assert main(["models", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}  torch_export, 0.")
    assert lines[1:5] == [
        "tiny in fp32 for classification into 3 classes, gives output",
        "input 3 x 16 x 12, bilinear interpolation, crop ratio 0.8 (squash), mean 0.5, 0.4, 0.3, "
        "deviation 0.1, 0.2, 0.3",
        "takes any number of images at once, of this size only",
        "classes ant, bee, cat",
    ]
    assert lines[5].startswith("written by convattn ")
    found = json.loads((main(["models", str(path), "--json"]), capsys.readouterr().out)[1])
    assert (found["format"], found["details"]["num_classes"]) == ("torch_export", 3)
    assert found["input_size"] == [3, 16, 12]
    assert main(["models", str(path), "--image-size", "64"]) == 1
    assert "an exported file is not counted; take the model" in capsys.readouterr().err


def test_an_exported_file_of_others_is_told_to_be_one(tmp_path, capsys):
    path = write(tmp_path, "torch_export", model=tiny_net())
    assert main(["models", str(path)]) == 0
    assert "was not written by convattn: its input, preprocessing and classes are unknown" in capsys.readouterr().out


_OF_FAILURE = ("none of the ", "no such file", "too small")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["zzz_*"], "no model matches 'zzz_*'; known: "),
        (["timm:resnet19"], "unknown timm model 'resnet19'; nearest: resnet"),
        (["resnet18"], "unknown model 'resnet18'"),
        (["smt_tiny.in21k"], "smt_tiny has no weights 'in21k'; it has in1k"),
        (
            ["smt_tiny", "--image-size", "0"],
            "--image-size: '0' must be a side, (height, width) or (channels, height, width), each 1 or more",
        ),
        (["smt_*", "--image-size", "64"], "--image-size counts one model; name one, or leave it out"),
        (["smt_tyny", "--pretrained"], "unknown model 'smt_tyny'; nearest: smt_tiny"),
        (["--max-params", "1M", "--min-top1", "82"], "none of the "),
        (["--min-top1", "0.82"], "min-top1 0.82 must be a percentage, 1 to 100, such as 82"),
        (["--min-top1", "nan"], "min-top1 nan must be a percentage"),
        (["--sort", "latency", "--runtime", "eagre"], "runtime 'eagre' is unknown; nearest: eager"),
        (["--runtime", "eager"], "--runtime eager is what --sort latency times the models in; give both"),
        (["timm:*", "--max-params", "1M"], "models are too many to build and count; narrow the pattern to 60"),
        (["timm:*", "--sort", "latency"], "models are too many to build and count; narrow the pattern to 60"),
        (["timm:resnet18", "--min-top1", "70"], "timm:resnet18: timm's package states no accuracies"),
        (["timm:zzz*"], "no model matches 'timm:zzz*'; no name of timm's is like it"),
        (["runs/phots"], "runs/phots: no such file"),
        (["smt_tiny.onnx"], "smt_tiny.onnx: no such file"),
        (["smt_tiny.safetensors", "--pretrained"], "smt_tiny.safetensors: is one model's; limits and --sort are for"),
        ([""], "the name is empty"),
        (["smt_tiny", "--image-size", "2"], "2 x 2 pixels is too small; the nearest size that works is 4 x 4"),
    ],
)
def test_bad_requests_are_refused_in_one_line(args, message, capsys):
    status = main(["models", *args])
    error = capsys.readouterr().err
    assert message in error
    assert status == (1 if any(word in error for word in _OF_FAILURE) else 2)
    assert error.count("\n") == 1
