"""timm: a classifier, as an ONNX file."""

import timm
import torch
from weights import trained

import bnfold

model = trained(timm.create_model("levit_128s"))
program = torch.onnx.export(model, (torch.randn(1, 3, 224, 224),), dynamo=True, verbose=False)
program, report = bnfold.fold_onnx(program)  # the line more
program.save("levit_128s.onnx")
reports = {"levit_128s": report}
