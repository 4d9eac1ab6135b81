"""Which of a service's models answers a request: the split between arms, the canary, the shadow, and their figures."""
