"""torchaudio: a Conformer for speech, as an ONNX file.

By the older exporter: the model reads the longest length as a number, which torch.export does not follow.
"""

import onnx
import torch
from torchaudio.models import Conformer
from weights import trained

import bnfold

model = trained(Conformer(80, num_heads=4, ffn_dim=128, num_layers=4, depthwise_conv_kernel_size=31))
example = (torch.randn(1, 50, 80), torch.tensor([50]))
torch.onnx.export(model, example, "conformer.onnx", dynamo=False)
folded, report = bnfold.fold_onnx("conformer.onnx")  # the line more
onnx.save(folded, "conformer.onnx")
reports = {"Conformer": report}
