"""Federated averaging (McMahan et al. 2017, arXiv 1602.05629): the mean change, weighted by examples.

Choose it when devices hold honest counts and those with more data should count more. A device states its own number of
examples, so where devices are not trusted an unweighted strategy is safer.
"""

from covey_server.strategies.base import Strategy, add_weighted, empty, mean


def fedavg() -> Strategy:
    """The weighted mean; with server optimizer sgd and learning rate 1 the new adapter is the old one plus it."""

    return Strategy("fedavg", empty, add_weighted, mean, weigh=float)
