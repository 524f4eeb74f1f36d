"""`torch.compile(model, backend="bnfold")`: what was captured is folded, then handed on.

To be read in this order: backend.py, the entry point; capture.py, what the captured graph reads; program.py,
the fold; weights.py, whether weights are still what was folded; folded.py, what is called in the end.
"""
