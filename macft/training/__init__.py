"""From rows and a model to an adapter: objectives, the loop, checkpoints, evaluation."""
