"""What tools/docs runs: mkdocs with a hook, and a check of what it made."""
