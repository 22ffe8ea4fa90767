"""Sweeps: a grid of recipes, each trained in a process of its own, to one table and one picture."""
