"""Quality and cost in numbers, and the pictures that show them."""
