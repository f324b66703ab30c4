"""Neuron clustering: from scores to clusters to query-relevant neurons; touches no model."""

from qrnca_lens.clustering.cluster import Cluster, make_cluster
from qrnca_lens.clustering.config import QRNCAConfig, config_of
from qrnca_lens.clustering.profiles import NeuronClusters, cluster_neurons
from qrnca_lens.clustering.qr_neurons import QRNeurons, check_located
from qrnca_lens.clustering.tables import ModelShape

__all__ = [
    "Cluster",
    "ModelShape",
    "NeuronClusters",
    "QRNCAConfig",
    "QRNeurons",
    "check_located",
    "cluster_neurons",
    "config_of",
    "make_cluster",
]
