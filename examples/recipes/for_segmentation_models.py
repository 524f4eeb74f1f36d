"""segmentation-models-pytorch: a U-Net, as an ONNX file."""

import segmentation_models_pytorch as smp
import torch
from weights import trained

import bnfold

model = trained(smp.Unet("mobileone_s0", encoder_weights=None))
program = torch.onnx.export(model, (torch.randn(1, 3, 64, 64),), dynamo=True, verbose=False)
program, report = bnfold.fold_onnx(program)  # the line more
program.save("unet.onnx")
reports = {"Unet, mobileone_s0": report}
