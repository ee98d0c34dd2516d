"""Learning the weights: settings, data, matcher, criterion, the training loop, and how good the result is."""
