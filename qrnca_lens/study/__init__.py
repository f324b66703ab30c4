"""Reproduce the paper: every table and figure, on any model."""

from qrnca_lens.study.reproduce import Reproduction, Subject, reproduce, subject

__all__ = ["Reproduction", "Subject", "reproduce", "subject"]
