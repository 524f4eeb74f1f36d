"""Deployment with TensorRT: the plugin library, and engines."""

from bnfold.tensorrt.plugin import load_plugin

__all__ = ["load_plugin"]
