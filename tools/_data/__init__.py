"""Images and models for the tools."""
