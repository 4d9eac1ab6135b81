"""What a router adds to a request."""
