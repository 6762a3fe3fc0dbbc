"""Saved models: their folders, their cards, and how they are published on the Hub."""
