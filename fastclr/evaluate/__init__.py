"""Evaluation of an encoder: its features (features.py), and kNN, linear probe and logistic regression on them."""

from fastclr.evaluate.features import extract_features
from fastclr.evaluate.knn import knn_accuracy, knn_predict
from fastclr.evaluate.linear import linear_probe
from fastclr.evaluate.logistic import logistic_regression

__all__ = ["extract_features", "knn_accuracy", "knn_predict", "linear_probe", "logistic_regression"]
