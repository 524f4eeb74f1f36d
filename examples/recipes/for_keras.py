"""Keras 3 on torch: a classifier, as an exported program."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

import keras
import torch
from weights import trained

import bnfold

model = trained(keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3)))
program = torch.export.export(model, (torch.randn(1, 96, 96, 3),))
program, report = bnfold.fold_program(program)  # the line more
torch.export.save(program, "mobilenet_v2.pt2")
reports = {"MobileNetV2": report}
