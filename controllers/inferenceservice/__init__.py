"""InferenceService: routers in front, the primary model's predictors behind them, and what is known of both."""
