"""A training run: its options, checkpoints, records, samples and what it leaves behind."""
