"""What the executables beside this file run."""
