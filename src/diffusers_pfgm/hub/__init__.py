"""Saved models: their folders, their model cards, and their publication on the Hugging Face Hub."""
