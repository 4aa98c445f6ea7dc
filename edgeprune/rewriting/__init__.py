"""From a model and a plan to a new model, and folding what the plan leaves behind into the weights."""
