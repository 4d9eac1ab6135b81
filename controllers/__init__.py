"""The controllers: one folder per kind, and the runtime that they share."""
