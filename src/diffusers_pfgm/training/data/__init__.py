"""The images of a training run: where they come from, how they are read, and in which order."""
