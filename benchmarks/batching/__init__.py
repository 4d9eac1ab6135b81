"""What dynamic batching gains."""
