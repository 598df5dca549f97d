"""Evaluators: figures of a trained model on a dataset, counted per example."""
