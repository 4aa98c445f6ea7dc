"""The architectures: layouts of keys, shortcuts, names, and what a user's own factory may do wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.tracing.trace import trace
from edgeprune.zoo import ARCH_FORMS, ARCHS, build
from edgeprune.zoo.cifar_densenet import CifarDenseNet
from edgeprune.zoo.cifar_preresnet import CifarPreResNet
from edgeprune.zoo.cifar_resnet import FORMS, CifarResNet, padded_after, padded_both_sides


def keys(arch: str) -> set[str]:
    return set(build(arch).model.state_dict())


@pytest.mark.parametrize(("form", "depth"), [("", 20), ("-stage", 14), ("-b", 14)])
def test_a_resnet_has_as_many_layers_as_its_depth_and_maps_images_to_logits(form: str, depth: int) -> None:
    built = build(f"resnet{depth}{form}", num_classes=7)
    model = built.model
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth
    assert built.input_shape == (3, 32, 32)
    assert not model.training
    assert model(torch.zeros(2, *built.input_shape)).shape == (2, 7)


def test_resnet20_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in build("resnet20").model.parameters()) == 269_722
    assert sum(p.numel() for p in build("resnet56").model.parameters()) == 853_018
    assert sum(p.numel() for p in build("resnet110").model.parameters()) == 1_727_962


@pytest.mark.parametrize(
    ("arch", "classes", "params", "macs"),
    # The counts of the papers: 1.73 M for ResNet-164 and 2.03 M for DenseNet-86 with 100 classes (GConv, table 1),
    # 1.0 M for DenseNet-40.
    [
        ("resnet164", 100, 1_726_388, 247_669_760),
        ("densenet86", 100, 2_031_716, 248_248_448),
        ("densenet40", 10, 1_019_722, 264_812_928),
    ],
)
def test_the_networks_of_the_papers_have_their_sizes(arch: str, classes: int, params: int, macs: int) -> None:
    built = build(arch, num_classes=classes)
    graph = trace(built.model, torch.zeros(1, *built.input_shape)).graph
    assert sum(p.numel() for p in built.model.parameters()) == graph.params == params
    assert graph.macs == macs
    weighted = [layer for layer in graph.layers if not layer.is_shortcut]
    assert len(weighted) == int(arch[-2:] if "dense" in arch else arch[-3:])


@pytest.mark.parametrize("arch", ["resnet164-w4", "densenet40-w8", "densenet86-w8"])
def test_dense_and_pre_activation_networks_map_images_of_any_size_to_logits(arch: str) -> None:
    model = build(arch, num_classes=7, in_channels=1).model
    assert model(torch.zeros(2, 1, 8, 12)).shape == (2, 7)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert (first.in_channels, first.out_channels) == (1, int(arch.split("-w")[1]))


def test_dense_and_pre_activation_networks_have_the_keys_of_public_checkpoints() -> None:
    resnet = keys("resnet164")
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "layer3.17.bn3.running_var", "bn.bias", "fc.bias"} <= resnet
    assert not any("downsample.1" in key or "layer1.1.downsample" in key for key in resnet)
    assert {"conv1.weight", "dense3.11.conv1.weight", "trans2.bn1.bias", "bn.weight", "fc.weight"} <= keys("densenet40")
    assert {
        "features.init_conv.weight", "features.denseblock_1.denselayer_14.bn2.bias",
        "features.denseblock_3.denselayer_1.conv2.weight", "features.norm_last.running_mean", "classifier.bias",
    } <= keys("densenet86")  # fmt: skip


@pytest.mark.parametrize("depth", [12, 8])
def test_a_depth_that_the_networks_cannot_have_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="9n \\+ 2"):
        CifarPreResNet(depth)
    with pytest.raises(ValueError, match="3n \\+ 4"):
        CifarDenseNet(depth)


def test_each_form_has_the_keys_of_its_public_checkpoints() -> None:
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer3.0.bn2.running_var", "linear.bias"} <= keys(
        "resnet8"
    )
    assert {
        "conv_1_3x3.weight",
        "bn_1.bias",
        "stage_1.0.conv_a.weight",
        "stage_3.0.bn_b.running_var",
        "classifier.bias",
    } <= keys("resnet8-stage")
    assert keys("resnet8-b") - keys("resnet8") == {
        f"layer{n}.0.shortcut.{part}"
        for n in (2, 3)
        for part in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    }


@pytest.mark.parametrize("size", [7, 8])
def test_parameter_free_shortcuts_take_every_second_pixel_and_add_zero_channels(size: int) -> None:
    x = torch.randn(2, 4, size, size)
    both, after = padded_both_sides(x, 4), padded_after(x, 4)
    assert both.shape == after.shape == (2, 8, (size + 1) // 2, (size + 1) // 2)
    assert torch.equal(both[:, 2:6], x[:, :, ::2, ::2])
    assert not both[:, :2].any()
    assert not both[:, 6:].any()
    assert torch.equal(after[:, :4], x[:, :, ::2, ::2])
    assert not after[:, 4:].any()


def test_the_forms_with_shared_keys_compute_different_functions() -> None:
    model = build("resnet8").model
    other = CifarResNet(8, FORMS["-stage"])
    with torch.no_grad():
        for mine, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
            mine.copy_(theirs)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(model(x), other.eval()(x), atol=1e-3)


@pytest.mark.parametrize("arch", ["resnet8", "resnet8-stage", "resnet8-b", "vgg16-cifar"])
def test_the_tracer_understands_every_built_in_form(arch: str) -> None:
    built = build(arch)
    graph = trace(built.model, torch.zeros(2, *built.input_shape)).graph
    assert len(graph.layers) == {"resnet8": 8, "resnet8-stage": 8, "resnet8-b": 10, "vgg16-cifar": 14}[arch]
    assert not any(layer.refusal for layer in graph.layers)
    pinned = [s for s in graph.coupled_sets if s.pinned]
    assert len(pinned) == 2, "only the input and the output are pinned"


def test_the_width_suffix_multiplies_every_stage() -> None:
    model = build("resnet8-stage-w32", in_channels=1).model
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["conv_1_3x3.weight"] == (32, 1, 3, 3)
    assert shapes["stage_3.0.conv_b.weight"] == (128, 128, 3, 3)
    assert shapes["classifier.weight"] == (10, 128)


def test_every_listed_name_can_be_built() -> None:
    with torch.device("meta"):
        for name in [n for n in ARCHS if "110" not in n and "56" not in n]:
            assert build(name).name == name
    assert "torchvision:NAME" in ARCH_FORMS
    assert all(ARCHS.values())


def test_a_resnet_works_on_other_image_sizes() -> None:
    built = build("resnet8", input_size=(40, 24))
    assert built.input_shape == (3, 40, 24)
    assert built.model(torch.zeros(1, 3, 40, 24)).shape == (1, 10)


def test_listing_the_architectures_does_not_import_torch() -> None:
    code = "import sys, edgeprune.zoo; assert edgeprune.zoo.ARCHS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torchvision_networks_by_name() -> None:
    with torch.device("meta"):
        small = build("torchvision:resnet18", num_classes=5)
        inception = build("torchvision:inception_v3")
    assert small.model.get_submodule("fc").out_features == 5
    assert small.input_shape == (3, 224, 224)
    assert inception.input_shape == (3, 299, 299)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet21", ["resnet20"]),
        ("resnet50", ["torchvision:resnet50"]),
        ("resnet8-w0", ["resnet8"]),
        ("resnet164-b", ["resnet164"]),
        ("densenet41", ["densenet40"]),
        ("vgg16cifar", ["vgg16-cifar"]),
        ("torchvision:resnt50", ["resnet50"]),
        ("torchvision:ssd300_vgg16", ["takes a list of images", "examples/detector.py"]),
        ("torchvision:r3d_18", ["clips"]),
        ("torchvision:raft_large", ["two images"]),
        ("timm:resnet18", ["timm", "pip install timm"]),
        ("", ["unknown architecture"]),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(arch: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else SimpleNamespace())
    with pytest.raises(InputError) as error:
        build(arch)
    assert all(text in str(error.value) for text in expected), str(error.value)
    assert "\n" not in str(error.value)


def test_timm_networks_by_name_where_timm_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []

    class Stub(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.default_cfg = {"input_size": (3, 160, 192)}

    def create_model(name: str, **options: object) -> nn.Module:
        made.append({"name": name, **options})
        return Stub()

    stub = SimpleNamespace(list_models=lambda: ["stub_net"], create_model=create_model)
    monkeypatch.setattr("edgeprune.zoo.importlib.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr("edgeprune.zoo.importlib.import_module", lambda name: stub)
    built = build("timm:stub_net", num_classes=4, in_channels=1)
    assert built.input_shape == (1, 160, 192)
    assert made == [{"name": "stub_net", "pretrained": False, "in_chans": 1, "num_classes": 4}]
    with pytest.raises(InputError, match="did you mean stub_net"):
        build("timm:stubnet")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_classes": 0}, "at least 1"),
        ({"input_size": (0, 32)}, "at least 1"),
        ({"in_channels": 1}, "take RGB"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected), torch.device("meta"):
        build("torchvision:resnet18", **arguments)  # type: ignore[arg-type]


# -- the user's own file -----------------------------------------------------------------------------------------------
USER_FILE = """
from torch import nn
import helper_beside_the_file

INPUT_SHAPE = (1, 12, 14)

def plain(): return nn.Conv2d(1, 2, 3)
def with_options(num_classes=3, in_channels=1): return nn.Conv2d(in_channels, num_classes, 3)
def own_shape():
    model = nn.Conv2d(3, 2, 3)
    model.INPUT_SHAPE = (3, 8, 8)
    return model
def raises(): raise RuntimeError("out of ideas")
def exits(): raise SystemExit(3)
def no_module(): return {"weight": 1}
def needs(argument): return nn.Conv2d(1, 2, 3)
number = 3
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside_the_file.py").write_text("value = 1\n")
    path = tmp_path / "my_net.py"
    path.write_text(USER_FILE)
    return path


def test_a_factory_of_the_users_and_its_input_shape(user_file: Path) -> None:
    before = list(sys.path)
    built = build(f"{user_file}:plain")
    assert isinstance(built.model, nn.Conv2d)
    assert built.input_shape == (1, 12, 14)
    assert build(f"{user_file}:own_shape").input_shape == (3, 8, 8)
    assert build(f"{user_file}:plain", input_size=(20, 30)).input_shape == (1, 20, 30)
    assert sys.path == before
    assert "my_net" not in sys.modules


def test_a_factory_is_given_the_options_that_it_has_parameters_for(user_file: Path) -> None:
    model = build(f"{user_file}:with_options", num_classes=9, in_channels=4).model
    assert isinstance(model, nn.Conv2d)
    assert (model.out_channels, model.in_channels) == (9, 4)
    default = build(f"{user_file}:with_options", in_channels=1).model
    assert isinstance(default, nn.Conv2d)
    assert default.out_channels == 3


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("plane", "did you mean plain"),
        ("raises", "RuntimeError: out of ideas"),
        ("exits", "SystemExit"),
        ("no_module", "returned a dict"),
        ("needs", "TypeError"),
        ("number", "of type int"),
    ],
)
def test_what_a_factory_does_wrong_is_said_in_one_line(user_file: Path, factory: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        build(f"{user_file}:{factory}")
    assert expected in str(error.value)
    assert "my_net.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        build(f"{tmp_path}/nowhere.py:net")
    with pytest.raises(InputError, match="path/to/file.py:factory"):
        build(f"{tmp_path}/nowhere.py")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="SyntaxError"):
        build(f"{tmp_path}/broken.py:f")


def test_a_factory_without_an_input_shape_asks_for_one(tmp_path: Path) -> None:
    path = tmp_path / "shapeless.py"
    path.write_text("from torch import nn\ndef net(): return nn.Conv2d(3, 2, 3)\n")
    with pytest.raises(InputError, match="--input-size"):
        build(f"{path}:net")
    assert build(f"{path}:net", input_size=(16, 16)).input_shape == (3, 16, 16)
    path.write_text("INPUT_SHAPE = (3, 32)\nfrom torch import nn\ndef net(): return nn.Conv2d(3, 2, 3)\n")
    with pytest.raises(InputError, match="INPUT_SHAPE"):
        build(f"{path}:net")
