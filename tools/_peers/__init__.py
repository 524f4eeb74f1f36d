"""bnfold and other tools for the same job, and what each leaves."""
