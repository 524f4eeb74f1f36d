"""The networks of tools/zoo, by the names that timm gives them."""

from __future__ import annotations

_ALL = """
    densenet121 resnetv2_50 levit_128s mixnet_s visformer_tiny swiftformer_xs inception_next_atto
    nasnetalarge pnasnet5large xception41p lambda_resnet26t efficientformerv2_s0 shvit_s1 inception_v4
    convmixer_768_32 repvgg_a0 mobileone_s0 fastvit_t8 repvit_m0_9 resnet18 resnet26d resnet50
    resnetaa50 resnetblur18 resnext50_32x4d wide_resnet50_2 seresnet50 skresnet18 resnest14d
    res2net50_26w_4s ecaresnet26t gcresnet33ts botnet26t_256 halonet26t legacy_xception inception_v3
    inception_resnet_v2 xception41 dpn68b mobilenetv1_100 mobilenetv2_100 mobilenetv3_small_100
    mobilenetv3_large_100 mobilenetv4_conv_small mnasnet_small spnasnet_100 fbnetc_100 hardcorenas_a
    lcnet_050 tinynet_e rexnet_100 semnasnet_100 efficientnet_b0 efficientnet_lite0 mixnet_m
    ghostnet_100 ghostnetv2_100 repghostnet_050 regnetx_002 regnety_002 gernet_s hrnet_w18_small dla34
    vovnet39a ese_vovnet19b_dw tresnet_m selecsls42b hgnetv2_b0 starnet_s1 darknet53
"""
NAMES = tuple(_ALL.split())

# Where the sign of a scale keeps batch norms: what is left is also counted with few negative ones.
SIGNED = (
    "resnetv2_50",
    "xception41p",
    "lambda_resnet26t",
    "repvgg_a0",
    "mobileone_s0",
    "dpn68b",
    "repghostnet_050",
)
