"""Models: encoders, projection heads, SimCLR, and batch norm over ranks."""

from fastclr.model.classifier import Classifier
from fastclr.model.encoders import ENCODERS, check_image_size, make_encoder
from fastclr.model.global_bn import GlobalBatchNorm, convert_batchnorm
from fastclr.model.projector import projector
from fastclr.model.resnet import ResNet, resnet
from fastclr.model.simclr import SimCLR
from fastclr.model.whitening import whiten

__all__ = [
    "ENCODERS",
    "Classifier",
    "GlobalBatchNorm",
    "ResNet",
    "SimCLR",
    "check_image_size",
    "convert_batchnorm",
    "make_encoder",
    "projector",
    "resnet",
    "whiten",
]
