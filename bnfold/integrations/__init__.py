"""bnfold inside other stacks: one thin module for each, which loads its stack only where it is used."""
