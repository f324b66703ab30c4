"""Neuron clustering: from scores to clusters to query-relevant neurons; touches no model."""

from qrnca_lens.clustering.cluster import Cluster, make_cluster
from qrnca_lens.clustering.config import QRNCAConfig
from qrnca_lens.clustering.profiles import NeuronClusters, cluster_neurons
from qrnca_lens.clustering.qr_neurons import QRNeurons
from qrnca_lens.clustering.tables import ModelShape

__all__ = ["Cluster", "ModelShape", "NeuronClusters", "QRNCAConfig", "QRNeurons", "cluster_neurons", "make_cluster"]
