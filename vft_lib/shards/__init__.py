"""Whole collections of clips as tokens: shards written by one machine or many, and read again."""
