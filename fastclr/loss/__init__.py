"""Contrastive losses: NT-Xent, and the two that the paper compares it with."""

from fastclr.loss.margin_triplet import margin_triplet
from fastclr.loss.nt_logistic import nt_logistic
from fastclr.loss.nt_xent import ContrastiveMetrics, contrastive_metrics, nt_xent

__all__ = ["ContrastiveMetrics", "contrastive_metrics", "margin_triplet", "nt_logistic", "nt_xent"]
