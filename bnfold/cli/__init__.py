"""The command line."""

from bnfold.cli.app import main as main
