"""Batch norm for training: drop-in for torch's modules, with the activation and the residual sum in one call.

BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm: the modules. convert: put them in place of torch's.
revert: put torch's back. recalibrate: statistics of a whole data set.
"""

from bnfold.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnfold.nn.convert import convert, revert
from bnfold.nn.recalibrate import Recalibration, recalibrate
from bnfold.nn.sync import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Recalibration",
    "SyncBatchNorm",
    "convert",
    "recalibrate",
    "revert",
]
