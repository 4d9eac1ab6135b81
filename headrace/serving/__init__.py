"""Serving: the predictor (one model behind the Open Inference Protocol) and the router (a chain with fallbacks)."""
