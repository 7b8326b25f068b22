"""Tuneway: a self-hosted fine-tuning gateway that speaks OpenAI's API and trains on the machine it runs on."""

__version__ = "0.1.0"
