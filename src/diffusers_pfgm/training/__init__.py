"""What a training run is made of, one part a file. Needs the extra `training`."""
