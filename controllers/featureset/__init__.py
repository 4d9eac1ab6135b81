"""FeatureSet: a refresh at the right time, servers in front, and what both say."""
