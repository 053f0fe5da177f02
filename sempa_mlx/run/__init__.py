"""One training run, put together from data, model, objectives, encoder and evaluation."""
