"""Reproduce the paper: every table and figure, on any model."""

from qrnca_lens.study.reproduction import Reproduction, reproduce
from qrnca_lens.study.subjects import Subject, subject

__all__ = ["Reproduction", "Subject", "reproduce", "subject"]
