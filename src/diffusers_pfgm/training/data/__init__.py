"""The images of a training run: their sources, their decoding, their labels and their order."""
