"""A plan carried out on a torch.nn.Module, whose classes and names stay."""
