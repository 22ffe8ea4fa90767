"""Training: stages of a recipe, one after the other, resumable at any step."""
