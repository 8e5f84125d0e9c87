"""A student flow decoder for the ids of any tokenizer, that needs one to four passes."""
