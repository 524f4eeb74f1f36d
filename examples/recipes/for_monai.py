"""MONAI: networks for volumes, as ONNX files."""

import torch
from monai.networks.nets import SegResNet, UNet
from weights import trained

import bnfold

networks = {
    "UNet, 3-D": UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, norm="batch"),
    "SegResNet, 3-D": SegResNet(spatial_dims=3, in_channels=1, out_channels=2, norm=("batch", {})),
}
x = torch.randn(1, 1, 32, 32, 32)
reports = {}
for name, model in networks.items():
    program = torch.onnx.export(trained(model), (x,), dynamo=True, verbose=False)
    program, reports[name] = bnfold.fold_onnx(program)  # the line more
    program.save(f"{name}.onnx")
