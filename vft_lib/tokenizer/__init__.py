"""Latents to ids and back: encoder, FSQ, flow decoder. Start at `tokenizer.py`."""
