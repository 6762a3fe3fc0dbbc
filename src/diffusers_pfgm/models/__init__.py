"""Networks, one architecture in each file."""
