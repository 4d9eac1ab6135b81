"""This service beside other model servers, with the same model."""
