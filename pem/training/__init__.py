"""Learning the weights: data, matcher, criterion, the training loop, and how good the result is."""
