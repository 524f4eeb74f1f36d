"""transformers: two classifiers, and the backbone of a detector, as ONNX files."""

import torch
import transformers
from weights import trained

import bnfold

networks = {
    "levit": transformers.LevitForImageClassification(transformers.LevitConfig()),
    "mobilevit": transformers.MobileViTForImageClassification(transformers.MobileViTConfig()),
    "rt_detr backbone": transformers.RTDetrResNetBackbone(transformers.RTDetrResNetConfig()),
}
x = torch.randn(1, 3, 224, 224)
reports = {}
for name, model in networks.items():
    program = torch.onnx.export(trained(model), (x,), dynamo=True, verbose=False)
    program, reports[name] = bnfold.fold_onnx(program)  # the line more
    program.save(f"{name}.onnx")
