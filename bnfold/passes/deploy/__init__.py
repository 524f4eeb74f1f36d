"""Rewriting for a runtime what no fold can remove: nothing here changes what a model computes."""
