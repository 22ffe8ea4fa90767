"""A recipe's data before anything trains: every sample checked, any sample shown as the model sees it."""
