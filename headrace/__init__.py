"""Headrace: machine learning systems as Kubernetes resources."""
