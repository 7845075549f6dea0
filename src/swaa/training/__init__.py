"""Lightweight fine-tuning under the sliding mask: self-distilled answers, LoRA, SFT and KL."""
