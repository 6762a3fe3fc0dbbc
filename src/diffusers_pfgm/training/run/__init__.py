"""A training run: its options, training loop, checkpoints, records, samples and final outputs."""
