"""Evaluation: loss, perplexity and accuracy of a model on data, and scores of the answers that it generates."""
