"""TrainingJob: a group of workers that start together, are replaced together and go on from the last checkpoint."""
