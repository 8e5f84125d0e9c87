"""The causal video autoencoder: pixels to latents and back."""
