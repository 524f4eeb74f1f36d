"""PyTorch Geometric: a graph network with batch norms, as an exported program."""

import torch
from torch_geometric.nn.models import GIN
from weights import trained

import bnfold

model = trained(GIN(16, 32, num_layers=4, out_channels=8, norm="batch_norm"))
nodes, edges = torch.randn(20, 16), torch.randint(0, 20, (2, 60))
program = torch.export.export(model, (nodes, edges))
program, report = bnfold.fold_program(program)  # the line more
torch.export.save(program, "gin.pt2")
reports = {"GIN": report}
