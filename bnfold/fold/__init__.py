"""The heart of bnfold: where can a frozen batch norm go? Framework-free, numpy only.

Read in this order: `graph` (what the solver sees of a model), `affine` (the arithmetic), `carry` (one rule
for each role), `transact` (one try, with rollback), `solve` (which tries, in which order), `absorb` (the new
weights), `ledger`.
"""
