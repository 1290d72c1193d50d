"""The networks of the ladder, their starting weights, and the table that names them."""

from train.networks.edge import ResidualNetwork
from train.networks.plain import PlainCNN
from train.networks.registry import NETWORKS, count_parameters, make_network
from train.networks.resnet import GrayResNet, SmallMapConv2d
from train.networks.weights import find_weights

__all__ = [
    "NETWORKS",
    "GrayResNet",
    "PlainCNN",
    "ResidualNetwork",
    "SmallMapConv2d",
    "count_parameters",
    "find_weights",
    "make_network",
]
