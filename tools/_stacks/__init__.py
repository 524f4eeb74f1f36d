"""Networks in other stacks, without bnfold and with it."""
