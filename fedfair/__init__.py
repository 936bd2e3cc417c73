"""Federated training of multimodal diagnostic models, modulated by modality and demographic group."""

__version__ = "0.1.0"
